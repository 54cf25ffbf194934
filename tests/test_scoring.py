"""Rewards inside a run: beside the rollout, failing now and then, watched, and left behind."""

import json
from dataclasses import replace
from math import isfinite

import pytest
import torch
from runs import metrics, settings
from test_trainer import SMALL, same, train, weights, without_times

from neighbor_grpo.config import load_config
from neighbor_grpo.methods import METHODS
from neighbor_grpo.training.errors import TrainingError
from neighbor_grpo.training.figures import reward_gap
from neighbor_grpo.training.trainer import Trainer

KINDS = ("neighbor", "flow_grpo_fast", "branch_grpo", "neighbor_late", "nft", "dgpo", "fdfo")  # the others are like one of them
EACH = [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("name", ["neighbor", "branch_grpo"])  # trees of both shapes
def test_scoring_beside_the_rollout_is_the_same_run(tiny_flux, tmp_path, name):
    runs = []
    for where in ("false", "true"):
        (tmp_path / where).mkdir()
        here = (f"reward.overlap={where}", f"run_dir={tmp_path / where / 'run'}")
        more = (SMALL[name], "iterations=2", "batch.rollout=4", *here)
        config = load_config(None, [*settings(tiny_flux, tmp_path, function="worth"), *more])
        runs.append(Trainer(config).run())
    assert without_times(metrics(runs[0])) == without_times(metrics(runs[1]))
    assert same(weights(runs[0], 2), weights(runs[1], 2))


@pytest.mark.slow  # it compares times, which other work of the machine changes
def test_a_slow_scorer_costs_only_its_last_portion(tiny_flux, tmp_path):
    """Two portions of 0.2 s: beside the rollout at most the last is waited for, and what the rollout is too short to hide."""
    run = train(tiny_flux, tmp_path, "batch.rollout=4", "reward.overlap=true", "iterations=2", function="slow")
    line = metrics(run)[2]
    hidden = line["time/rollout"] + line["time/decode"]
    assert 0.19 <= line["time/reward"] <= 0.43 - hidden / 2 + 0.05


@pytest.mark.parametrize("name", EACH)
def test_groups_rolled_out_in_portions_are_those_rolled_out_at_once(tiny_flux, tmp_path, name):
    runs = []
    for rows in (4, 96):
        (tmp_path / str(rows)).mkdir()
        here = (f"batch.rollout={rows}", f"run_dir={tmp_path / str(rows) / 'run'}")
        more = (SMALL[name], "iterations=1", "optimizer.lr=1e-5", *here)
        runs.append(metrics(Trainer(load_config(None, [*settings(tiny_flux, tmp_path, function="worth"), *more])).run())[1])
    counts = ("nfe_old", "nfe_nominal", "nfe_theta")
    assert [runs[0][key] for key in counts] == [runs[1][key] for key in counts]
    reward = next(key for key in runs[0] if key.startswith("reward/"))
    assert runs[0][reward] == pytest.approx(runs[1][reward], rel=1e-5)
    assert runs[0]["grad_norm"] == pytest.approx(runs[1]["grad_norm"], rel=2e-3)


def test_failed_pictures_are_counted_told_and_left_out(tiny_flux, tmp_path):
    run = train(tiny_flux, tmp_path, "reward.max_failed=0.9", "iterations=4", function="sometimes")
    lines = metrics(run)
    name = f"{tmp_path / 'reward.py'}:sometimes"
    failed = [line[f"failed/{name}"] for line in lines[1:]]
    told = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    assert sum(failed) > 0
    for n, line in enumerate(lines):
        here = [one for one in told if one["iteration"] == n and one["reason"] == "RuntimeError: no view"]
        assert len(here) == line.get(f"failed/{name}", 0) + line.get(f"eval_failed/{name}", 0)
    assert all(isfinite(line[f"reward/{name}"]) and line["grad_norm"] > 0 for line in lines[1:])
    assert f"ithout a score: {name} {len(told)}." in (run / "report.html").read_text()


def test_a_scorer_that_goes_down_stops_the_run_with_a_checkpoint_and_the_run_goes_on(tiny_flux, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(tiny_flux, tmp_path / "a")
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path / "b", "save_every=50", "reward.overlap=true")))
    (scorer,), calls = trainer.parts.rewards.scorers.values(), []

    def down_in_the_third(images, prompts, metadata):
        calls.append(len(prompts))
        if len(calls) > 2:
            raise ConnectionError("gone")
        return scorer.function(images, prompts, metadata)

    trainer.parts.rewards.scorers[scorer.name] = replace(scorer, function=down_in_the_third)
    with pytest.raises(TrainingError, match=r"8 of 8 pictures.*ConnectionError: gone.*--resume"):
        trainer.run()
    run = tmp_path / "b" / "run"
    assert (run / "checkpoints" / "000002").is_dir()
    Trainer.resume(run).run()
    assert same(weights(whole, 3), weights(run, 3))


def test_a_watched_scorer_that_fails_costs_its_figure_and_not_the_run(tiny_flux, tmp_path):
    broken = f"{tmp_path / 'reward.py'}:broken"
    lines = metrics(train(tiny_flux, tmp_path, f'watch=["{broken}", "jpeg_size"]', "iterations=1"))
    assert all(line[f"eval_failed/{broken}"] == 6 and f"eval/{broken}" not in line for line in lines)
    assert all("eval/jpeg_size" in line for line in lines)


def test_the_best_weights_by_a_measure_are_kept_beside_the_last(tiny_flux, tmp_path):
    """By the most and by the least: of the same run, at least one of them lies before its end."""
    from neighbor_grpo.run.weights import load_trained

    def lora(run, best):
        loaded = load_trained(None, run, "cpu", best=best)
        assert loaded.settings["best"] == best
        return {key: p for key, p in loaded.model.transformer.named_parameters() if "lora" in key}

    earlier = 0
    for sign, pick in (("", max), ("-", min)):
        more = ("watch=[saturation]", "evaluate.every=1", "iterations=5", "optimizer.lr=1e-2", "ema=null")
        run = train(tiny_flux, tmp_path, *more, f"evaluate.best={sign}saturation", f"run_dir={tmp_path / ('run' + sign)}")
        values = [line["eval/saturation"] for line in metrics(run)]
        best = json.loads((run / "best" / "best.json").read_text())
        at = values.index(pick(values))
        assert (best["iteration"], best["measure"]) == (at, sign + "saturation")
        assert best["value"] == (values[at] if not sign else -values[at])
        kept, last = lora(run, True), lora(run, False)
        same_as_last = all(torch.equal(p, kept[key]) for key, p in last.items())
        assert same_as_last == (at == 5)
        earlier += at < 5
    assert earlier


def test_the_gap_by_hand():
    base = {"eval/a": 1.0, "eval_spread/a": 2.0, "eval/b": 0.0, "eval_spread/b": 0.5, "eval/c": 3.0, "eval_spread/c": 1.0}
    now = {"eval/a": 4.0, "eval/b": 0.25, "eval/c": 2.0}
    assert reward_gap(base, now, {"a": 1.0}, ["b"]) == pytest.approx(1.5 - 0.5)
    assert reward_gap(base, now, {"a": 3.0, "b": 1.0}, ["c", "jpeg_size"]) == pytest.approx((3 * 1.5 + 0.5) / 4 + 1.0)
    assert reward_gap(base, now, {"a": 1.0}, ["jpeg_size"]) is None
    assert reward_gap(base, {"eval/b": 0.25}, {"a": 1.0}, ["b"]) is None


def test_a_run_that_leaves_the_watched_reward_behind_stops(tiny_flux, tmp_path):
    dark = f"{tmp_path / 'reward.py'}:darkness"
    more = (f'watch=["{dark}"]', "evaluate.every=1", "iterations=30", "optimizer.lr=1e-2", "ema=null")
    run = train(tiny_flux, tmp_path, *more, "evaluate.early_stop=0.5")
    gaps = [line["eval/gap"] for line in metrics(run)]
    assert len(gaps) < 31 and gaps[-1] > 0.5 and max(gaps[:-1]) <= 0.5
    assert (run / "report.html").is_file() and (run / "lora").is_dir()
