import csv
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from browser import PHONE, axe
from made_votes import MODELS, PROMPTS, evaluation, study

from neighbor_grpo.arena.agreement import attention
from neighbor_grpo.arena.store import read_votes
from neighbor_grpo.arena.votes import DEGRADED
from neighbor_grpo.arena.win_rates import winner
from neighbor_grpo.cli import main


def run(capsys, *arguments):
    code = main(["arena", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def mistake(capsys, *arguments):
    code, _, error = run(capsys, *arguments)
    assert code == 2 and len(error.strip().splitlines()) == 1 and "Traceback" not in error, error
    return error


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with its votes, evaluations and results."""
    place = tmp_path_factory.mktemp("study")
    folders, db = study(place)
    for folder in folders:
        evaluation(folder, [[1.0, 2.0], [3.0, None], [5.0, 6.0]], [0.1, 0.2, 0.3])
    options = [f"--evaluation={name}={folder}" for name, folder in zip(MODELS, folders, strict=True)]
    assert main(["arena", "results", str(db), "--out", str(place / "out"), *options]) == 0
    return place, folders, db


def test_the_results_count_every_vote_once(made):
    place, _, db = made
    found = json.loads((place / "out" / "results.json").read_text())
    votes = [one for one in read_votes(str(db))[1] if one.purpose == "vote"]
    assert found["votes"] == len(votes) == 4 * 6 * 2 and found["raters"] == 4
    for question in found["questions"]:
        counts = Counter(winner(one) for one in votes if one.question == question["question"])
        (rate,) = question["rates"]
        assert (rate["wins"], rate["losses"], rate["ties"]) == (counts["base"], counts["ours"], counts[None])
        assert rate["rate"]["value"] == (counts["base"] + counts[None] / 2) / 24
        assert {one["metric"] for one in question["metrics"]} == {"judge", "diversity"}
        parts = [one[answer] for (one,) in question["categories"].values() for answer in ("wins", "ties", "bad", "losses")]
        assert sum(parts) == 24 and list(question["categories"]) == ["one", "two"]


def test_the_table_of_votes_has_them_all_without_names(made):
    place, _, db = made
    text = (place / "out" / "votes.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(read_votes(str(db))[1]) == 4 * 8 * 2 and "rater 0" not in text
    assert Counter(row["purpose"] for row in rows) == {"vote": 48, "repeat": 8, "obvious": 8}
    assert all((row["counted"] == "1") == (row["purpose"] == "vote") for row in rows)
    assert {row["left"] for row in rows} <= {*MODELS, DEGRADED}


def test_the_page_can_be_read_by_everybody(made, page, new_page):
    address = (made[0] / "out" / "results.html").as_uri()
    page.goto(address)
    assert page.locator("h2").all_inner_texts()[:2] == ["overall", "looks"] and page.locator(".bar").count() == 2
    assert axe(page) == []
    phone = new_page(viewport=PHONE)
    phone.goto(address)
    assert phone.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_page_names_no_rater_and_asks_no_host(made):
    text = (made[0] / "out" / "results.html").read_text()
    assert "rater 0" not in text and "http" not in text.partition("</style>")[2].replace("http-equiv", "")


def test_careless_raters_are_left_out_if_asked(capsys, made):
    consistency = {one.rater: one.consistency for one in attention(read_votes(str(made[2]))[1])}
    least = max(consistency.values())
    code, out, _ = run(capsys, "results", made[2], "--min-consistency", least)
    low = [str(n) for n, rater in enumerate(sorted(consistency), 1) if consistency[rater] < least]
    assert code == 0 and low and f"below {least:g}: {', '.join(low)}." in out
    assert f"| base : ours | {6 * (4 - len(low))} |" in out


def test_pairs_are_exported(capsys, made, tmp_path):
    _, folders, db = made
    code, out, _ = run(capsys, "export", db, *folders, "--out", tmp_path / "pairs", "--question", "looks")
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert code == 0 and f"{len(rows)} pairs; {6 - len(rows)} pairs" in out
    assert {row["question"] for row in rows} == {"looks"} and {row["prompt"] for row in rows} <= set(PROMPTS)
    numbers = {name: folders[n] for n, name in enumerate(MODELS)}
    for row in rows:
        copied = (tmp_path / "pairs" / row["chosen"]).read_bytes()
        assert copied in [file.read_bytes() for file in (numbers[row["chosen_model"]] / "pictures").iterdir()]


def test_a_plan_is_printed_with_what_it_assumes(capsys):
    code, out, _ = run(capsys, "plan", "--prompts", 300, "--raters", 46, "--win-rate", 0.72, "--width", 0.1)
    assert code == 0 and "for each rater" in out and "Assumed" in out and "V = " in out


def test_mistakes_are_one_line(capsys, made, tmp_path):
    _, folders, db = made
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("text")
    for arguments, remedy in (
        (("results", tmp_path / "none.db"), "arena serve"),
        (("results", tmp_path / "used" / "file"), "begin one with|another --db"),
        (("results", db, "--out", tmp_path / "used"), "is not empty"),
        (("results", db, "--evaluation", f"base={folders[0]}"), "ours=DIR"),
        (("results", db, "--min-consistency", 2), "at most 1"),
        (("export", db, *folders, "--out", tmp_path / "used"), "is not empty"),
        (("export", db, *folders, "--out", tmp_path / "new", "--question", "taste"), "choose among overall, looks"),
        (("export", db, *folders[::-1], "--out", tmp_path / "new"), "give the folders"),
        (("plan", "--prompts", 5, "--raters", 4, "--width", 0.05), "raters"),
        (("plan", "--prompts", 5, "--raters", 1), "at least 2"),
    ):
        assert re.search(remedy, mistake(capsys, *arguments))
    assert not (tmp_path / "new").exists()


def test_a_study_without_votes_says_so(capsys, tmp_path):
    folders, db = study(tmp_path, raters=0)
    assert "no votes yet" in mistake(capsys, "results", db)
    assert "more people vote" in mistake(capsys, "export", db, *folders, "--out", tmp_path / "new")


def test_nothing_of_it_imports_torch(made):
    code = f"""
import sys
from neighbor_grpo.cli import main
assert main(["arena", "results", {str(made[2])!r}]) == 0
assert not {{"torch", "matplotlib", "pandas"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
