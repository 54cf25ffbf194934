"""Runs that a signal, or a number that is not finite, ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import settings
from test_trainer import equal_runs, train

from neighbor_grpo.config import load_config
from neighbor_grpo.training.errors import TrainingError
from neighbor_grpo.training.signals import SignalError
from neighbor_grpo.training.trainer import Trainer

OFTEN = ("evaluate.every=1", "batch.rollout=4", "save_every=100")
EXTRAS = [(), ("ema=null", "model.lora=null", "optimizer.lr=1e-4"), ("optimizer.warmup=5",)]


@pytest.fixture(scope="module")
def undisturbed(tiny_flux, tmp_path_factory):
    """A run of each kind that no signal came to."""
    return {extra: train(tiny_flux, tmp_path_factory.mktemp("a"), *extra, *OFTEN) for extra in EXTRAS}


@pytest.mark.parametrize(
    ("extra", "phase", "occurrence", "done"),
    [
        (EXTRAS[0], "evaluate", 1, 0),
        pytest.param(EXTRAS[0], "rollout", 1, 0, marks=pytest.mark.slow),
        pytest.param(EXTRAS[0], "evaluate", 2, 1, marks=pytest.mark.slow),
        (EXTRAS[0], "reward", 4, 1),
        (EXTRAS[1], "decode", 3, 1),
        pytest.param(EXTRAS[1], "evaluate", 3, 2, marks=pytest.mark.slow),
        (EXTRAS[2], "update", 4, 2),
        pytest.param(EXTRAS[2], "encode", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_any_phase_saves_the_last_whole_iteration(tiny_flux, tmp_path, undisturbed, extra, phase, occurrence, done):
    (tmp_path / "b").mkdir()
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path / "b", *extra, *OFTEN)))
    seen = []

    def shown(name):
        seen.append(name)
        if name == phase and seen.count(phase) == occurrence:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.display.phase = trainer.parts.phases.shown = shown
    with pytest.raises(SignalError, match="--resume"):
        trainer.run()
    assert trainer.done == done
    run = tmp_path / "b" / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()][-1:] and not list(run.rglob(".*.partial"))
    Trainer.resume(run).run()
    assert equal_runs(undisturbed[extra], run)


def test_an_update_that_takes_too_long_is_given_up(tiny_flux, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(tiny_flux, tmp_path / "a", "save_every=100")
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path / "b", "save_every=100")))
    monkeypatch.setattr("neighbor_grpo.training.signals.GRACE", 0.2)
    step, steps = trainer.learner.step, []

    def slow_step(*given):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(30)
        return step(*given)

    trainer.learner.step = slow_step
    began = time.monotonic()
    with pytest.raises(SignalError):
        trainer.run()
    assert time.monotonic() - began < 20
    run = tmp_path / "b" / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000"]  # weights in the middle are not saved
    Trainer.resume(run).run()
    assert equal_runs(whole, run)


@pytest.mark.slow
def test_a_reward_that_hangs_does_not_keep_a_stopped_run_alive(tiny_flux, tmp_path):
    more = settings(tiny_flux, tmp_path, "reward.overlap=true", "evaluate.prompts=1")
    source = "import time\n\ndef hangs(images, prompts, metadata):\n    open({!r}, 'w').close()\n    time.sleep(600)\n"
    (tmp_path / "hang.py").write_text(source.format(str(tmp_path / "begun")))
    reward = f"reward={tmp_path / 'hang.py'}:hangs"
    process = subprocess.Popen(
        [sys.executable, "-m", "neighbor_grpo", "train", *more, reward], stderr=subprocess.PIPE, text=True
    )
    for _ in range(6000):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in err and time.monotonic() - began < 10


def test_what_is_not_finite_is_named(tiny_flux, tmp_path):
    """A loss by its prompt and tensor, a weight by the rollout that it spoils."""
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path)))
    method, prompts = trainer.config.method, [prompt.text for prompt in trainer.parts.prompts]
    texts = []

    class Spoiled(type(method)):
        def loss(self, policy, rows):
            loss, figures = super().loss(policy, rows)
            return torch.where(rows.prompt.to(loss.device) == 1, loss * float("nan"), loss), figures

    experience = trainer.source.experience

    def noted(n):
        got = experience(n)
        texts[:] = got.texts
        return got

    trainer.source.experience = noted
    trainer.learner.config = trainer.config.model_copy(update={"method": Spoiled(**vars(method))})
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    said = str(caught.value)
    assert "gradient of" in said and "lora" in said and repr(texts[1]) in said and repr(texts[0]) not in said
    assert set(texts) <= set(prompts) and (tmp_path / "run" / "failed").is_dir()
    again = Trainer.resume(tmp_path / "run")
    next(iter(again.learner.weights.values())).data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="rollout of iteration 0"):
        again.run()
