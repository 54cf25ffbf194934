"""Methods of foreign kinds in whole runs: no branch of the pipeline knows them, and they are planned, trained and resumed."""

import shutil
from pathlib import Path

import foreign
import pytest
import torch
from runs import metrics, settings
from safetensors.torch import load_file, save_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.planning.plan import plan
from neighbor_grpo.training.trainer import Trainer

FILE = Path(foreign.__file__)


@pytest.fixture
def run_of(tiny_flux, tmp_path):
    """Train with a class of foreign.py, by the common settings without the keys of the default method."""

    def run(kind: str, *more: str) -> Path:
        common = [item for item in settings(tiny_flux, tmp_path) if not item.startswith("method.")]
        return Trainer(load_config(None, [f"method.name={FILE}:{kind}", *common, *more])).run()

    return run


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").iterdir()) / "weights.safetensors")


def test_a_lagging_copy_draws_follows_and_is_resumed(run_of):
    run = run_of("ForwardProcess", "save_every=1", "iterations=3", "method.num_steps=3")
    lines = metrics(run)[1:]
    assert all({"pull", "lag", "loss", "grad_norm"} <= line.keys() for line in lines)
    assert not any("ratio/clipped" in line for line in lines)
    assert [line["nfe_theta"] for line in lines] == [line["nfe_frozen"] for line in lines] == [1.0] * 3
    assert lines[0]["lag"] > 0 and lines[0]["pull"] > 0
    whole = last_weights(run)
    states = [torch.load(path / "state.pt", weights_only=True) for path in sorted((run / "checkpoints").iterdir())]
    before, after = (state["copies"]["old"] for state in states)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(after, whole.values(), strict=True))  # it lags
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    (run / "report.html").unlink()
    Trainer.resume(run).run()
    assert all(torch.equal(whole[name], weight) for name, weight in last_weights(run).items())


def test_pairs_from_a_file_are_trained_without_rollouts(run_of, tiny_flux, tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = load_model(tiny_flux)
    save_file({arm: model.noise(3, generator) for arm in ("chosen", "rejected")}, tmp_path / "pairs.safetensors")
    run = run_of("PairsFromFile", f"method.pairs={tmp_path / 'pairs.safetensors'}", "iterations=2", "batch.update=2")
    lines = metrics(run)[1:]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # -log sigmoid(0): model and reference are one at first
    assert all("nfe_old" not in line and "time/rollout" not in line for line in lines)
    assert [line["nfe_theta"] for line in lines] == [line["nfe_frozen"] for line in lines] == [1.0] * 2  # two states of two
    with pytest.raises(UserError, match=r"model\.lora"):
        run_of("PairsFromFile", f"method.pairs={tmp_path / 'pairs.safetensors'}", "model.lora=null", "run_dir=x")


def test_chained_velocities_are_counted_and_trained(run_of):
    run = run_of("Chained", "iterations=2", "method.num_steps=3", "optimizer.lr=1e-2")
    lines = metrics(run)[1:]
    assert [line["nfe_theta"] for line in lines] == [3.0, 3.0]  # a forward-backward for each step of each sample
    assert lines[1]["loss"] != lines[0]["loss"] and lines[0]["norm"] > 0


@pytest.mark.parametrize(("kind", "trained", "frozen"), [("ForwardProcess", 8, 8), ("PairsFromFile", 2, 2), ("Chained", 16, 0)])
def test_the_plan_counts_what_a_loss_asks_for(kind, trained, frozen):
    config = load_config(None, [f"method.name={FILE}:{kind}", "prompts.per_iteration=1", "iterations=1"])
    counted = plan(config)
    assert (counted.forward_backwards, counted.frozen) == (trained, frozen)
    assert counted.evaluations == counted.forwards + 3 * trained + frozen


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ("class Half(Method):\n    def rollout(self): ...\n    def loss(self): ...\n", "lacks group_size, num_steps, updates"),
        ("class Half:\n    group_size = num_steps = 2\n    rollout = updates = loss = None\n", "derives from"),
        ("Half = 3\n", "no class Half"),
        ("class Half(\n", "does not load"),
    ],
)
def test_a_class_that_is_not_a_method_is_refused_with_what_it_lacks(tmp_path, body, remedy):
    file = tmp_path / "half.py"
    file.write_text(f"from neighbor_grpo.methods.protocol import Method\n\n{body}")
    with pytest.raises(UserError, match=remedy):
        load_config(None, [f"method.name={file}:Half"])


def test_unknown_methods_and_files_are_named():
    with pytest.raises(UserError, match="dance_grpo"):
        load_config(None, ["method.name=dance_gpro"])
    with pytest.raises(UserError, match=r"nowhere\.py"):
        load_config(None, ["method.name=nowhere.py:Mine"])
