"""A whole training run whose scorer is a server that fails: the same run, or failed pictures that are counted."""

import random
from collections import Counter
from itertools import chain, repeat

import pytest
import torch
from faulty import KINDS, Faulty
from runs import metrics, settings
from safetensors.torch import load_file
from test_remote import spoil

from neighbor_grpo.config import load_config
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.score import Scores
from neighbor_grpo.training.trainer import Trainer


def brightness(path, body):
    images = protocol.read_request(body).images()
    return protocol.answer(Scores(torch.stack([image.double().mean() for image in images])), {"name": "faulty"}, {})


def run_with(plan, model, tmp, retries):
    """(run directory, faults injected) of 10 iterations, scored by a server that goes through the plan."""
    tmp.mkdir()
    server = Faulty(brightness, chain(plan, repeat("ok")), spoil, hold=4.0)
    with server.serving() as url:
        far = f"reward.scorers={{far: {{url: '{url}', timeout: 3, retries: {retries}, backoff: 0, batch: 2}}}}"
        more = ("reward=far", far, "iterations=10", "watch=[jpeg_size]", "reward.max_failed=0.9", "save_every=10")
        run = Trainer(load_config(None, settings(model, tmp, *more))).run()
    return run, Counter({kind: n for kind, n in server.injected.items() if kind != "ok"})


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 1000])
def test_a_run_with_faults_is_the_run_without(tiny_flux, tmp_path, n):
    rng = random.Random(1)
    plan = rng.choices([kind for kind in KINDS if kind not in ("slow", "drip")], k=n - 2) + ["slow", "drip"] + ["ok"] * 40
    rng.shuffle(plan)
    clean, none = run_with([], tiny_flux, tmp_path / "clean", 0)
    faulty, injected = run_with(plan, tiny_flux, tmp_path / "faulty", n)
    assert sum(none.values()) == 0 and sum(injected.values()) == n
    ours, theirs = (
        [{k: v for k, v in line.items() if not k.startswith(("time/", "mfu/", "scorer/"))} for line in metrics(run)]
        for run in (clean, faulty)
    )
    assert ours == theirs
    a, b = (load_file(run / "checkpoints" / "000010" / "weights.safetensors") for run in (clean, faulty))
    assert all(torch.equal(a[key], b[key]) for key in a)
    told = {key.rpartition("/")[2]: value for key, value in metrics(faulty)[-1].items() if key.startswith("scorer/far/")}
    kinds = Counter()
    for kind, number in injected.items():
        kinds[KINDS[kind]] += number
    assert {kind: told[kind] for kind in kinds} == kinds and told["retries"] == n


def test_faults_beyond_the_retries_are_counted_and_the_run_goes_on(tiny_flux, tmp_path):
    plan = random.Random(2).choices(["500", "garbage", "dropped", "ok"], weights=[1, 1, 1, 6], k=400)
    run, injected = run_with(plan, tiny_flux, tmp_path / "a", 0)
    lines = metrics(run)
    failed = sum(line["failed/far"] for line in lines[1:]) + sum(line.get("eval_failed/far", 0) for line in lines)
    assert failed == 2 * sum(injected.values()) > 0
    assert len((run / "failures.jsonl").read_text().splitlines()) == failed
    assert all(line["grad_norm"] > 0 for line in lines[1:])
