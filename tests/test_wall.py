"""The wall of strict correctness: its prompts, its figures and its page."""

import json
from collections import Counter
from pathlib import Path

import wall
import yaml

from neighbor_grpo.compare.settings import read_comparison
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.worlds.scenes.make_prompts import lists
from neighbor_grpo.worlds.scenes.world import PROMPTS, parse

ROOT = Path(__file__).parent.parent


def test_the_prompt_files_are_those_that_the_recipe_writes():
    for name, specs in lists().items():
        assert (PROMPTS / f"{name}.txt").read_text().splitlines() == [spec.prompt for spec in specs]
    assert {file.stem for file in PROMPTS.iterdir()} == set(lists())


def test_hard_prompts_are_training_prompts_with_one_single_object_in_thirteen():
    hard = [prompt.text for prompt in read_prompts("scenes_hard")]
    train = Counter(prompt.text for prompt in read_prompts("scenes"))
    assert not Counter(hard) - train
    left_out = (train - Counter(hard)).elements()
    assert {parse(text).family for text in left_out} == {"single"}
    assert sum(parse(text).family == "single" for text in hard) == len(hard) // 13


def test_costs_are_added_up_to_every_evaluation(tmp_path):
    """Two prompts x 3 samples, 8 forwards, 2 forward-backwards of 3 and a frozen forward each: 6 x 15 = 90 an iteration."""
    config = {"prompts": {"per_iteration": 2}, "method": {"name": "nft", "group_size": 3, "num_train_steps": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    trained = {"nfe_old": 8, "nfe_theta": 2, "nfe_frozen": 1, "time/rollout": 1.5, "time/update": 0.5, "time/evaluate": 9}
    measured = {"eval/scenes_strict": 0.5, "eval/scenes_distance": 3.0}
    lines = [{"iteration": 0} | measured, {"iteration": 1} | trained, {"iteration": 2} | trained | measured]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, last = wall.kept(tmp_path)
    assert first["evaluations"] == 0
    assert last == {
        "iterations": 2, "evaluations": 180, "pictures": 12, "seconds": 4, "scenes_strict": 0.5, "scenes_distance": 3.0,
    }  # fmt: skip


def test_a_row_is_the_mean_of_its_seeds_and_the_best_point_of_a_long_run():
    def run(*points):
        return [
            dict.fromkeys(("iterations", "evaluations", "pictures", "seconds"), n) | point for n, point in enumerate(points)
        ]

    def at(strict):
        return {"scenes_strict": strict, "scenes_distance": 2.0}

    runs = {
        "short/a/seed-0": run(at(0.5), at(0.5)),
        "short/a/seed-1": run(at(0.5), at(0.7)),
        "long/b": run(at(0.5), at(0.6), at(0.4)),
    }
    long, short = (wall.table(wall.rows(runs, place), best=place == wall.LONG).splitlines()[-1] for place in ("long", "short"))
    assert "| b | 1 |" in long and "| 0.600 | +10.0 |" in long
    assert "| 0.600 ± 0.141 | +10.0 ± 14.1 |" in short


def test_the_page_shows_the_kept_figures_and_every_short_run_has_its_row():
    long, short = (wall.rows(json.loads(wall.RUNS.read_text()), place) for place in (wall.LONG, wall.SHORT))
    page = (ROOT / "docs" / "results.md").read_text()
    assert wall.table(long, best=True) in page and wall.table(short, best=False) in page
    _, entries = read_comparison(ROOT / "benchmarks" / "wall.yaml")
    assert {entry.name for entry in entries} == set(short)
