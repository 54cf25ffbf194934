"""Votes and whole studies for tests."""

import json
import zlib
from hashlib import sha256

import numpy as np
from PIL import Image

from neighbor_grpo.arena.store import Store
from neighbor_grpo.arena.study import read_study
from neighbor_grpo.arena.votes import OVERALL, Vote
from neighbor_grpo.files.listing import Picture, write_listing

MODELS, PROMPTS, SEEDS = ("base", "ours"), ("a red cube", "<b>two</b> balls", "a blue star"), 2
CATEGORIES = ("one", "two", "one")
REWARD = {"class": "Judge", "strict": True}  # what a reward of the evaluations is


def vote(rater, answer, left="base", right="ours", prompt=0, seed=0, question=OVERALL, purpose="vote", seconds=2.0):
    return Vote(rater, prompt, seed, left, right, question, answer, purpose, seconds)


def pictures(folder, colour):
    """Write pictures and their listing, as `evaluate` does."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for n, prompt in enumerate(PROMPTS):
        for seed in range(SEEDS):
            file = f"pictures/{n:05d}-{seed}.png"
            Image.new("RGB", (8, 8), (colour, 40 * n, 80 * seed)).save(folder / file)
            rows.append(Picture(prompt, n, seed, file, CATEGORIES[n]))
    write_listing(folder, rows)
    return folder


def line(measure, scorer, prompt, values):
    """Return a line of an evaluation's ledger."""
    row = {"measure": measure, "scorer": scorer, "prompt": prompt, "values": values, "reasons": {}}
    return json.dumps(row | {"crc": zlib.crc32(json.dumps(row).encode())}) + "\n"


def evaluation(folder, reward, diversity):
    """Make a folder of pictures an evaluation: reward [P, S] and diversity [P], None without a value."""
    scorer = sha256(json.dumps(REWARD, sort_keys=True).encode()).hexdigest()[:12]
    ledger = "".join(line("judge", scorer, n, row) for n, row in enumerate(reward))
    ledger += "".join(line("diversity", "", n, [value]) for n, value in enumerate(diversity))
    ledger += line("judge", "another", 0, [9.0, 9.0]) + line("judge", scorer, 1, [7.0, 7.0])[:40] + "\n"  # cut off by a kill
    (folder / "scores-0.jsonl").write_text(ledger)
    names = {"judge": 0.0, "diversity": 0.0}
    result = {"values": names | {"scenes_distance": 1.0}, "intervals": {name: [0, 1] for name in names}, "failed": {}}
    result["settings"] = {"seeds": SEEDS, "number_of_prompts": len(PROMPTS), "scorers": {"judge": REWARD}}
    (folder / "result.json").write_text(json.dumps({"version": 1, **result}))


def study(place, raters=4, seed=0):
    """Write two models' pictures and a database in which raters have voted; return the folders and the database."""
    folders = [pictures(place / name, 90 * n) for n, name in enumerate(MODELS)]
    info = read_study([str(folder) for folder in folders], ["looks"]).info
    random, store, now = np.random.default_rng(seed), Store.serving(str(place / "study.db"), info), 1e9
    with store.writing() as writing:
        for r in range(raters):
            rater = writing.add_rater(f"rater {r}", now)
            for position, pair in enumerate([*range(len(info.pairs())), 0, 1]):
                purpose = "vote" if position < len(info.pairs()) else ("repeat", "obvious")[pair]
                swapped = bool(random.integers(2))
                fields = {"pair": pair, "purpose": purpose, "swapped": swapped, "position": position}
                fields |= {"token": f"{r}-{position}", "shown": now, "answered": None}
                better = "left" if swapped != (purpose == "obvious") else "right"  # ours is the pair's second model
                answers = {question: str(random.choice([better, better, "tie"])) for question in info.questions}
                writing.answer(writing.add(rater.id, [fields])[0].id, answers, now + 3)
                now += 10
    store.close()
    return folders, place / "study.db"
