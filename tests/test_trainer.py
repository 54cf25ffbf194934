import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from runs import advantages, metrics, settings
from safetensors.torch import load_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.planning.plan import plan
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.run.groups import read_groups
from neighbor_grpo.training.errors import TrainingError
from neighbor_grpo.training.trainer import Trainer


def train(*args, **kwargs):
    return Trainer(load_config(None, settings(*args, **kwargs))).run()


def weights(run, iteration):
    return load_file(run / "checkpoints" / f"{iteration:06d}" / "weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(lines):
    return [{key: value for key, value in line.items() if not key.startswith(("time/", "mfu/"))} for line in lines]


@pytest.fixture(scope="module")
def finished(tiny_flux, tmp_path_factory):
    return train(tiny_flux, tmp_path_factory.mktemp("finished"), "watch=[diversity, jpeg_size]", "evaluate.every=2")


def test_a_run_directory_has_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "lora", "report.html"} <= names
    assert (finished / "samples" / "before_after.png").is_file()
    page = (finished / "report.html").read_text()
    pictures = [*finished.glob("samples/000000/*.png"), *finished.glob("samples/000003/*.png")]
    assert page.count("data:image/png;base64,") >= len(pictures) > 0 and "drawCharts" in page
    assert not re.search(
        r"(src\s*=|<link)\s*[\"']?http|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|EventSource", page
    )  # asks no other host


def test_metrics_have_the_public_keys(finished):
    lines = metrics(finished)
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    reward = next(key for key in lines[1] if key.startswith("reward/"))
    for line in lines[1:]:
        phases = {f"time/{phase}" for phase in ("encode", "rollout", "decode", "reward", "update")}
        assert phases | {reward, "nfe_old", "nfe_theta", "ratio/noise_floor", "ratio/clipped", "grad_norm"} <= line.keys()
        assert (line["nfe_old"], line["nfe_theta"]) == (3.0, 2 * 2 / 4)
        assert line["ratio/noise_floor"] < 1e-5
    work = [[line[f"mfu/{phase}"] * line[f"time/{phase}"] for phase in ("rollout", "decode", "update")] for line in lines[1:]]
    assert all(here == pytest.approx(work[0]) for here in work) and min(work[0]) > 0  # FLOPs over the device's rate
    # 8 samples of 3 forwards against 2 groups of 2 transitions of 2 anchors; a LoRA's backward costs one to two forwards
    assert 2 <= work[0][2] / work[0][0] * 24 / 8 <= 3
    assert {"eval/diversity", "eval/jpeg_size"} <= lines[0].keys() & lines[2].keys() & lines[3].keys()
    assert "eval/diversity" not in lines[1]


def test_the_same_seed_is_the_same_run_and_another_is_not(tiny_flux, tmp_path_factory, finished):
    again = train(tiny_flux, tmp_path_factory.mktemp("again"), "watch=[diversity, jpeg_size]", "evaluate.every=2")
    other = train(tiny_flux, tmp_path_factory.mktemp("other"), "seed=1", "iterations=1")
    assert same(weights(finished, 3), weights(again, 3))
    assert [list(line.values()) for line in without_times(metrics(finished))] == [
        list(line.values()) for line in without_times(metrics(again))
    ]
    assert not same(weights(other, 1), weights(again, 3))


def test_micro_batches_and_checkpointing_do_not_change_the_run(tiny_flux, tmp_path, finished):
    run = train(tiny_flux, tmp_path, "batch.rollout=3", "batch.update=1", "batch.decode=2", "model.gradient_checkpointing=true")
    for name, weight in weights(finished, 3).items():
        torch.testing.assert_close(weights(run, 3)[name], weight, atol=2e-4, rtol=0)


def test_the_exported_lora_loads_in_diffusers_and_draws_what_the_run_saw(tiny_flux, finished):
    from neighbor_grpo.models.sampling import sample
    from neighbor_grpo.run.weights import load_trained

    model = load_trained(None, finished, "cpu").model
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    noise = model.noise(1, torch.Generator().manual_seed(0))
    ours = sample(model, model.encode(["a red circle"]), noise[None], 3, "euler")[0]

    def theirs():
        return pipe(
            "a red circle", height=32, width=32, num_inference_steps=3, latents=noise, max_sequence_length=24, output_type="pt"
        ).images

    untrained = theirs()
    pipe.load_lora_weights(finished / "lora")
    torch.testing.assert_close(ours, theirs(), atol=1e-4, rtol=0)
    assert not torch.allclose(ours, untrained, atol=1e-4)


def equal_runs(first, second):
    """Return whether two runs, in directories a and b, hold the same figures, times aside, and the same last weights."""
    names = {str(second.parent): str(first.parent)}
    theirs = [{k.replace(*next(iter(names.items()))): v for k, v in line.items()} for line in without_times(metrics(second))]
    last = metrics(first)[-1]["iteration"]
    return theirs == without_times(metrics(first)) and same(weights(first, last), weights(second, last))


def command(*args):
    return [sys.executable, "-m", "neighbor_grpo.cli", *map(str, args)]


def wait_for_line(run, iteration):
    for _ in range(6000):  # five minutes: starts are slow on a busy machine
        if (run / "metrics.jsonl").exists() and metrics(run)[-1]["iteration"] >= iteration:
            return
        time.sleep(0.05)
    raise AssertionError("the run never got there")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_goes_on_bit_for_bit(tiny_flux, tmp_path, how):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    more = ("iterations=12", "save_every=3")
    whole = train(tiny_flux, tmp_path / "a", *more)
    process = subprocess.Popen(command("train", *settings(tiny_flux, tmp_path / "b", *more)), stderr=subprocess.PIPE, text=True)
    run = tmp_path / "b" / "run"
    wait_for_line(run, 4)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    if how == signal.SIGTERM:
        assert f"neighbor-grpo train --resume {run}" in err
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 1')  # a line cut off
    Trainer.resume(run).run()
    assert same(weights(whole, 12), weights(run, 12))
    assert [line["iteration"] for line in metrics(run)] == list(range(13))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"8 of 8 pictures.*RuntimeError: no luck .prompt"),
        ("nan", r"1 of 8 pictures.*nan .prompt"),
        ("short", r"8 of 8.*shape \(1,\) for 8"),
    ],
)
def test_a_failing_reward_stops_with_a_checkpoint_and_mended_it_goes_on(tiny_flux, tmp_path, function, message):
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path)))
    bad = load_reward(f"{tmp_path / 'reward.py'}:{function}")
    trainer.parts.rewards.scorers = dict.fromkeys(trainer.parts.rewards.scorers, bad)
    with pytest.raises(TrainingError, match=message):
        trainer.run()
    assert (tmp_path / "run" / "checkpoints" / "000000").is_dir()
    Trainer.resume(tmp_path / "run").run()
    assert metrics(tmp_path / "run")[-1]["iteration"] == 3


def test_not_finite_stops_with_the_weights_and_the_cause(tiny_flux, tmp_path):
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path)))
    velocity, calls = trainer.parts.model.velocity, []

    def poisoned(x, t, cond):
        calls.append(torch.is_grad_enabled())
        v = velocity(x, t, cond)
        return v * float("nan") if sum(calls) == 2 else v  # the second training forward

    trainer.parts.model.velocity = poisoned
    with pytest.raises(TrainingError, match=r"not finite.*optimizer step 1.*--resume"):
        trainer.run()
    assert all(w.isfinite().all() for w in load_file(tmp_path / "run" / "failed" / "000001" / "weights.safetensors").values())
    Trainer.resume(tmp_path / "run").run()


def test_groups_without_spread_are_counted_and_move_nothing(tiny_flux, tmp_path):
    run = train(tiny_flux, tmp_path, "optimizer.weight_decay=0", function="flat")
    assert same(weights(run, 2), weights(run, 3))
    assert [line[next(k for k in line if k.startswith("flat_groups"))] for line in metrics(run)[1:]] == [2, 2, 2]


def test_several_rewards_are_logged_apart(tiny_flux, tmp_path):
    rewards = f'reward={{"jpeg_compressibility": 1.0, "{tmp_path / "reward.py"}:brightness": 0.5}}'
    line = metrics(train(tiny_flux, tmp_path, rewards, "iterations=1"))[-1]
    assert line["reward/jpeg_compressibility"] < 0 < line[f"reward/{tmp_path / 'reward.py'}:brightness"]


def test_another_run_is_not_written_over(tiny_flux, tmp_path, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        train(tiny_flux, tmp_path, f"run_dir={finished}")
    assert (finished / "metrics.jsonl").read_bytes() == before


SMALL = {
    "neighbor": "method.name=neighbor",
    "flow_grpo": "method={name: flow_grpo, group_size: 4, num_steps: 3}",
    "flow_grpo_fast": "method={name: flow_grpo_fast, group_size: 4, num_steps: 6}",
    "dance_grpo": "method={name: dance_grpo, group_size: 4, num_steps: 3, num_train_steps: 1, updates_per_rollout: 2}",
    "mix_grpo": "method={name: mix_grpo, group_size: 4, num_steps: 4, window: 2, dwell: 1}",
    "mix_grpo_flash": "method={name: mix_grpo_flash, group_size: 4, num_steps: 4, window: 2}",
    "mix_grpo_flash_star": "method={name: mix_grpo_flash_star, group_size: 4, num_steps: 4, window: 2}",
    "branch_grpo": "method={name: branch_grpo, group_size: 4, num_steps: 4, splits: [0, 1]}",
    "neighbor_late": "method={name: neighbor_late, group_size: 4, num_steps: 4}",
    "fdfo": "method={name: fdfo, group_size: 4, num_steps: 3}",
    "nft": "method={name: nft, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "awm": "method={name: awm, group_size: 4, num_steps: 4, num_train_steps: 2}",
    "v_grpo": "method={name: v_grpo, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "dgpo": "method={name: dgpo, group_size: 4, num_steps: 3, num_train_steps: 2}",
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_model(tiny_flux, tmp_path, name):
    """Two iterations: the plan's counts are the run's, the ratio starts at one, the weights move, groups are kept."""
    config = load_config(None, settings(tiny_flux, tmp_path, SMALL[name], "iterations=2"))
    counted, run = plan(config), Trainer(config).run()
    lines = metrics(run)[1:]
    assert sum(line["nfe_old"] for line in lines) / 2 == pytest.approx(counted.nfe_old)
    assert sum(line["nfe_theta"] for line in lines) / 2 == pytest.approx(counted.nfe_theta)
    assert all(line.get("ratio/noise_floor", 0.0) < 1e-4 and line["grad_norm"] > 0 for line in lines)
    before, after = (load_file(run / "checkpoints" / f"00000{n}" / "weights.safetensors") for n in (1, 2))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    kept = list(read_groups(run))
    assert [group.iteration for group in kept] == [1, 2]
    for group in kept:
        (rewards,) = group.rewards.values()
        expected = np.array(advantages(config.method, rewards))
        if getattr(config.method, "advantage_std", "group") == "iteration":
            expected *= np.dot(expected, group.advantages) / np.dot(expected, expected)
        assert group.advantages == pytest.approx(expected, rel=1e-3, abs=1e-6) and expected.any()


@pytest.mark.parametrize(
    "trained", [(), pytest.param(("model.lora=null", "optimizer.lr=1e-3"), marks=pytest.mark.slow)], ids=["lora", "all weights"]
)
def test_divergence_from_the_reference_is_zero_at_first_and_then_held(tiny_flux, tmp_path, trained):
    """The reference is the model before training: without its LoRA, or a copy of all weights, also in a resumed run."""
    flow = "method={{name: flow_grpo, group_size: 4, num_steps: 3, updates_per_rollout: 1, kl: {}}}"
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    loose = metrics(train(tiny_flux, tmp_path / "a", *trained, flow.format(1e-9), "iterations=6"))
    run = train(tiny_flux, tmp_path / "b", *trained, flow.format(1000.0), "iterations=6")
    held = metrics(run)
    assert loose[1]["kl"] == held[1]["kl"] == 0.0
    assert 0 < held[-1]["kl"] < loose[-1]["kl"]
    shutil.rmtree(run / "checkpoints" / "000006")
    (run / "report.html").unlink()
    Trainer.resume(run).run()
    assert without_times(metrics(run)) == without_times(held)


def test_memory_that_runs_out_is_one_line_and_the_run_goes_on(tiny_flux, tmp_path):
    trainer = Trainer(load_config(None, settings(tiny_flux, tmp_path)))
    step = trainer.learner.step

    def full(*given):
        if trainer.learner.updates == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
        return step(*given)

    trainer.learner.step = full
    said = r"after 1 iterations \(CUDA out of memory\).*plan says.*--resume .* batch\.update="
    with pytest.raises(TrainingError, match=said):
        trainer.run()
    assert Trainer.resume(tmp_path / "run").run() == tmp_path / "run"
    assert [line["iteration"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3]
