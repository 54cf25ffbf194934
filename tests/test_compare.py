import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import REWARD

from neighbor_grpo.cli import main
from neighbor_grpo.compare.outcome import Row, crossing, target
from neighbor_grpo.compare.runs import chosen_rate
from neighbor_grpo.compare.settings import Tune, load_comparison
from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.planning.plan import affordable, plan
from neighbor_grpo.run import files

SMALL = {
    "neighbor": {"name": "neighbor", "group_size": 4, "num_steps": 3, "num_train_steps": 2, "num_anchors": 2},
    "dance": {"name": "dance_grpo", "group_size": 4, "num_steps": 3, "num_train_steps": 2, "updates_per_rollout": 2},
}


def comparison(tmp, model="scenes", methods=None, **more):
    """A comparison file of two small methods on two seeds."""
    (tmp / "reward.py").write_text(REWARD)
    (tmp / "prompts.txt").write_text("a red circle\ntwo blue stars\n")
    values = {
        "run_dir": str(tmp / "out"),
        "base": {
            "model": {"path": str(model), "lora": {"rank": 2}},
            "device": "cpu",
            "reward": f"{tmp / 'reward.py'}:brightness",
            "prompts": {"path": str(tmp / "prompts.txt"), "per_iteration": 1, "cache_dir": str(tmp / "cache")},
            "evaluate": {"prompts": 2, "seeds": 2, "gallery": 2},
            "save_every": 1,
        },
        "methods": [{"run": name, "method": method} for name, method in SMALL.items()] if methods is None else methods,
        "seeds": [0, 1],
        "budget": {"iterations": 3},
        "points": 3,
        **more,
    }
    file = tmp / "compare.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def command(*arguments):
    return [sys.executable, "-m", "neighbor_grpo.cli", "compare", *map(str, arguments)]


def compare(*arguments):
    return main(["compare", *map(str, arguments)])


def lines_of(out):
    return {
        str(run.relative_to(out)): [
            {key: value for key, value in line.items() if not key.startswith(("time/", "mfu/"))} for line in files.metrics(run)
        ]
        for run in sorted(out.glob("*/*/"))
        if (run / "metrics.jsonl").exists()
    }


@pytest.fixture(scope="module")
def whole(tiny_flux, tmp_path_factory):
    """The comparison with a grid of two rates, uninterrupted."""
    tmp = tmp_path_factory.mktemp("whole")
    assert compare(comparison(tmp, tiny_flux, tune={"lr": [1e-3, 3e-3], "seed": 7})) == 0
    return tmp / "out"


def test_the_report_tells_what_the_runs_did(whole):
    with (whole / "table.csv").open() as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    for name, nfe_old, nfe_theta in (("neighbor", 3, 1), ("dance", (1 + 2 * 4) / 4, 2)):
        last = [files.metrics(whole / name / f"seed-{seed}")[-1] for seed in (0, 1)]
        reward = next(key for key in last[0] if key.startswith("eval/") and "brightness" in key)
        for key, source in (("reward", reward), ("diversity", "eval/diversity")):
            values = [line[source] for line in last]
            assert float(table[name][key]) == pytest.approx(np.mean(values))
            assert float(table[name][f"{key}_std"]) == pytest.approx(np.std(values, ddof=1))
        assert float(table[name]["nfe_old"]) == nfe_old and float(table[name]["nfe_theta"]) == nfe_theta
        assert float(table[name]["evaluations"]) == 3 * 4 * (nfe_old + 3 * nfe_theta)
        assert float(table[name]["iterations"]) == 3
    results = json.loads((whole / "results.json").read_text())
    assert np.shape(results["curves"]["dance"]["reward"]) == (2, 4)  # two seeds, before and after each of three iterations
    markdown = (whole / "table.md").read_text()
    assert all(name in markdown for name in ("neighbor", "dance", "NFE_θ", "Cost to reach"))


def test_the_page_is_self_contained(whole):
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and page.count("<table>") == 2
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert {"curves.png", "pictures.png", "table.csv", "table.md"} <= {path.name for path in whole.iterdir()}


def test_the_rate_is_chosen_on_the_other_seed(whole):
    for name in SMALL:
        tried = {lr: files.metrics(whole / name / f"lr-{lr}")[-1] for lr in ("0.001", "0.003")}
        reward = next(key for key in tried["0.001"] if key.startswith("eval/") and "brightness" in key)
        best = max(tried, key=lambda lr: tried[lr][reward])
        for seed in (0, 1):
            assert files.config_of(whole / name / f"seed-{seed}").optimizer.lr == float(best)
        assert all(files.config_of(whole / name / f"lr-{lr}").seed == 7 for lr in tried)


def test_finished_runs_are_not_run_again(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/*/metrics.jsonl")}
    assert compare(whole.parent / "compare.yaml") == 0
    assert "begins" not in capsys.readouterr().out and len(before) == 8
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("*/*/metrics.jsonl")}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_ends_where_the_whole_one_does(tiny_flux, tmp_path, whole, how, capsys):
    file = comparison(tmp_path, tiny_flux, tune={"lr": [1e-3, 3e-3], "seed": 7})
    process = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    at = tmp_path / "out" / "neighbor" / "seed-0" / "metrics.jsonl"
    while process.poll() is None and not (at.exists() and len(at.read_text().splitlines()) > 1):
        time.sleep(0.02)
    process.send_signal(how)
    _, error = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130 and "go on with: the same command" in error
    assert compare(file) == 0
    assert str(tmp_path / "out" / "neighbor" / "seed-0") + ": begins" not in capsys.readouterr().out

    def plain(out):  # the reward's name holds the directory
        return json.loads(json.dumps(lines_of(out)).replace(str(out.parent), ""))

    assert plain(tmp_path / "out") == plain(whole)


def test_tries_may_spend_a_share_of_the_budget(tiny_flux, tmp_path):
    file = comparison(tmp_path, tiny_flux, tune={"lr": [1e-3], "seed": 7, "share": 0.5}, seeds=[0], budget={"iterations": 5})
    assert compare(file) == 0
    ends = {name: files.metrics(tmp_path / "out" / "dance" / name)[-1]["iteration"] for name in ("lr-0.001", "seed-0")}
    assert ends == {"lr-0.001": 3, "seed-0": 5}


def test_parts_share_the_methods(tiny_flux, tmp_path):
    file = comparison(tmp_path, tiny_flux, seeds=[0])
    assert compare(file, "--part", "1/2") == 0 and not (tmp_path / "out" / "dance").exists()
    assert "Not finished: dance (0 of 1 seeds)" in (tmp_path / "out" / "report.html").read_text()
    done = files.metrics(tmp_path / "out" / "neighbor" / "seed-0")
    assert compare(file, "--part", "2/2") == 0 and done == files.metrics(tmp_path / "out" / "neighbor" / "seed-0")
    assert "Not finished" not in (tmp_path / "out" / "report.html").read_text()


# ---------------------------------------------------------------- budgets


def test_every_run_gets_the_same_evaluations(tmp_path):
    _, entries = load_comparison(comparison(tmp_path, budget={"evaluations": 1000}))
    for entry in entries:
        cost = plan(entry.config).evaluations
        assert 1000 - cost < entry.config.iterations * cost <= 1000
    assert [entry.config.iterations for entry in entries] == [41, 30]  # 4·3 + 3·4 = 24 and 9 + 3·8 = 33 an iteration
    assert [entry.config.evaluate.every for entry in entries] == [14, 10]
    assert {entry.config.evaluate.num_steps for entry in entries} == {3}


def test_the_budget_is_that_of_the_iterations_it_pays_for(tmp_path):
    """A window's first places share less than its later ones: 19 iterations of the mean cost would be a third too many."""
    methods = [{"method": {"name": name}, "prompts": {"per_iteration": 8}} for name in ("mix_grpo", "mix_grpo_flash")]
    _, entries = load_comparison(comparison(tmp_path, methods=methods, budget={"evaluations": 50000}))
    for entry in entries:
        at = [entry.config.model_copy(update={"iterations": entry.config.iterations + more}) for more in (0, 1)]
        within, beyond = (plan(config).evaluations * config.iterations for config in at)
        assert within <= 50000 < beyond
    assert entries[0].config.iterations == 14  # the window stays at the first place: 8·(1 + 12·24 + 3·48) = 3464 each


def test_a_long_budget_goes_by_the_mean(tmp_path):
    config = load_config(None, ["method.name=dance_grpo"])
    cost = plan(config).evaluations
    assert affordable(config, 5000 * cost) == 5000


def test_a_budget_of_seconds_ends_the_run(tiny_flux, tmp_path):
    base = yaml.safe_load(comparison(tmp_path, tiny_flux).read_text())["base"]
    base["evaluate"]["every"] = 5
    file = comparison(tmp_path, tiny_flux, seeds=[0], budget={"seconds": 0.5}, base=base)
    assert compare(file) == 0
    for name in SMALL:
        spent = [
            sum(line.get(f"time/{phase}", 0) for phase in ("encode", "rollout", "decode", "reward", "update"))
            for line in files.metrics(tmp_path / "out" / name / "seed-0")
        ]
        assert sum(spent) >= 0.5 > sum(spent[:-1])


# ---------------------------------------------------------------- figures


def test_crossing_is_in_proportion_between_points():
    x, y = np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 6.0])
    assert crossing(x, y, 3.0) == 12.5
    assert crossing(x, y, 0.5) == 0.0
    assert crossing(x, y, 7.0) is None


def test_cost_to_reach_is_of_the_mean_and_of_every_seed():
    costs = {"evaluations": np.array([[0.0, 100.0], [0.0, 100.0]])}
    row = Row("a", "neighbor", 1e-4, [], 0, 8, 8, 1, 1.0, costs, {"reward": np.array([[0.0, 1.0], [0.0, 3.0]])})
    of_mean, seeds = row.cost_to_reach(1.5, "evaluations")
    assert of_mean == 75.0 and seeds == [None, 50.0]
    assert row.measured_at(75.0) == {"reward": 1.5}


def test_the_reward_to_reach_is_the_best_baselines_that_keeps_to_the_bounds(tmp_path):
    def row(name, method, reward, strict):
        measures = {"reward": np.array([[0.0, reward]]), "strict": np.array([[1.0, strict]])}
        return Row(name, method, 1e-4, [], 0, 8, 8, 1, 1.0, {}, measures)

    rows = [row("ours", "neighbor", 9.0, 1.0), row("hacks", "dance_grpo", 5.0, 0.2), row("holds", "mix_grpo", 3.0, 0.9)]
    plain, _ = load_comparison(comparison(tmp_path))
    bounded = plain.model_copy(update={"tune": Tune(lr=[1e-4], within={"strict": [0.8, None]})})
    assert target(rows, plain)[0] == 5.0
    assert target(rows, bounded) == (3.0, "3, where holds ends")
    assert target(rows, plain.model_copy(update={"reach": "ours"}))[0] == 9.0
    assert target(rows, plain.model_copy(update={"reach": 4.5})) == (4.5, "4.5")


def test_rates_out_of_bounds_or_diverged_are_passed_over(tmp_path):
    runs = {}
    for lr, reward, strict in ((1e-4, 0.1, 0.5), (3e-4, 0.2, 0.48), (1e-3, 0.9, 0.1), (3e-3, 5.0, 0.5)):
        runs[lr] = tmp_path / str(lr)
        runs[lr].mkdir()
        files.record(runs[lr], {"iteration": 1, "eval/scenes": reward, "eval/scenes_strict": strict})
    (runs[3e-3] / "failed").mkdir()
    bounded = Tune(lr=list(runs), within={"scenes_strict": [0.47, None]})
    assert chosen_rate(runs, {"scenes": 1.0}, bounded) == 3e-4
    assert chosen_rate(runs, {"scenes": 1.0}, Tune(lr=list(runs))) == 1e-3
    assert chosen_rate(runs, {"scenes": 1.0}, Tune(lr=list(runs), within={"scenes_strict": [0.9, None]})) == 1e-4


def test_a_changed_comparison_does_not_pass_old_runs_for_new(whole, capsys):
    assert compare(whole.parent / "compare.yaml", "budget.iterations=4") == 2
    assert "was made with other settings: choose another run_dir" in capsys.readouterr().err


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": [{}, {}]}, "two methods share the run name 'neighbor'"),
        ({"methods": [{"method": {"name": "nieghbor"}}]}, "no method 'nieghbor': did you mean neighbor?"),
        ({"methods": [{"method": {"name": "mix_grpo", "window": 40}}]}, "window (40) is longer"),
        ({"methods": [{"config": "nowhere.yaml"}]}, "no configuration file"),
        ({"methods": [{"methd": {}}]}, "unknown key methd: did you mean method?"),
        ({"methods": []}, "methods: list should have at least 1 item"),
        ({"tune": {}}, "tune.lr is required and not given"),
        ({"budget": {}}, "exactly one of iterations, evaluations, seconds"),
        ({"budget": {"iterations": 3, "seconds": 3}}, "exactly one of"),
        ({"budget": {"evaluations": 5}}, "less than an iteration of neighbor costs"),
        ({"budgt": {"iterations": 3}}, "unknown key budgt: did you mean budget?"),
        ({"tune": {"lr": [1e-4], "seed": 1}}, "tune.seed (1) is one of the seeds reported"),
        ({"tune": {"lr": [1e-4], "within": {"scenes_strickt": [0, 1]}}}, "'scenes_strickt' is not measured"),
        ({"reach": "neigbor"}, "reach: no run 'neigbor'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, more, message):
    with pytest.raises(UserError) as caught:
        load_comparison(comparison(tmp_path, **more))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_is_none(tmp_path, part, capsys):
    assert compare(comparison(tmp_path), "--part", part) == 2
    assert "--part takes K/N" in capsys.readouterr().err and not (tmp_path / "out").exists()


CONFIGS = sorted(
    file
    for file in (Path(__file__).parents[1] / "configs").glob("*/*.yaml")
    if file.parent.name != "accelerate"  # its own
)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_configurations_are_valid(file):
    if file.stem.startswith("compare"):
        assert load_comparison(file)[1]
    else:
        assert load_config(file).method
