"""Methods of foreign kinds in whole runs: no branch of the pipeline knows them, and they are planned, trained and resumed."""

import shutil
from pathlib import Path

import foreign
import pytest
import torch
from runs import DETACHED, metrics, settings
from safetensors.torch import load_file, save_file
from test_trainer import without_times

from neighbor_grpo.config import Config, load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.fit import Place, fit
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


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        ("{name: nft, group_size: 4, num_steps: 3, num_train_steps: 2, kl: 0.1}", {"old"}),
        ("{name: dgpo, group_size: 4, num_steps: 3, num_train_steps: 2, draw_after: 1}", {"ema", "sampling"}),
    ],
)
def test_copies_of_bundled_methods_are_resumed_bit_for_bit(tiny_flux, tmp_path, method, copies):
    """Weights, copies and figures of the last iteration, in which a copy that lags has drawn."""
    config = load_config(None, settings(tiny_flux, tmp_path, f"method={method}", "iterations=3", "save_every=1"))
    run = Trainer(config).run()
    weights, line, last = last_weights(run), metrics(run)[3], max((run / "checkpoints").iterdir())
    state = torch.load(last / "state.pt", weights_only=True)
    assert state["copies"].keys() == copies
    for values in state["copies"].values():
        assert any(not torch.equal(a, b) for a, b in zip(values, weights.values(), strict=True))
    shutil.rmtree(last)
    (run / "report.html").unlink()
    Trainer.resume(run).run()
    assert all(torch.equal(weights[name], weight) for name, weight in last_weights(run).items())
    again = torch.load(last / "state.pt", weights_only=True)
    for name, values in state["copies"].items():
        assert all(torch.equal(a, b) for a, b in zip(values, again["copies"][name], strict=True))
    assert without_times(metrics(run))[3] == without_times([line])[0]


def test_pairs_from_a_file_are_trained_without_rollouts(run_of, tiny_flux, tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = load_model(tiny_flux)
    save_file({arm: model.noise(3, generator) for arm in ("chosen", "rejected")}, tmp_path / "pairs.safetensors")
    run = run_of("PairsFromFile", f"method.pairs={tmp_path / 'pairs.safetensors'}", "iterations=2", "batch.update=2")
    lines = metrics(run)[1:]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # -log sigmoid(0): model and reference are one at first
    assert all("nfe_old" not in line and "time/rollout" not in line for line in lines)
    assert [line["nfe_theta"] for line in lines] == [line["nfe_frozen"] for line in lines] == [1.0] * 2  # two states of two


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
    ("settings", "evaluations"),
    [
        ({"name": "nft"}, 10 + 9 * (3 + 1 + 1)),
        ({"name": "nft", "solver": "euler", "num_steps": 8, "num_train_steps": 2, "kl": 0.0}, 8 + 2 * (3 + 1)),
        ({"name": "nft", "decay": 0, "kl": 0.0}, 10 + 9 * 3),
        ({"name": "awm"}, 14 + 6 * (3 + 1 + 1)),
        ({"name": "v_grpo"}, 40 + 4 * 3),
        ({"name": "v_grpo", "updates_per_rollout": 2}, 40 + 4 * (3 + 1)),
        ({"name": "dgpo"}, 10 + 4 * (3 + 1 + 1)),
    ],
)
def test_the_plan_counts_forward_process_methods_as_their_authors_do(settings, evaluations):
    """Per sample: the rollout, three for a forward-backward, one for each forward of a copy or of the reference."""
    counted = plan(Config(method=settings, iterations=1))
    assert counted.evaluations == counted.samples * evaluations


def test_the_memory_of_lagging_copies_is_in_the_plan():
    """Two copies of fp32 weights; a full fine-tune's are as large as the model."""
    for name, copies in (("nft", 1), ("v_grpo", 0), ("dgpo", 2)):
        held = estimate(Config(method={"name": name}), "cpu")
        assert held.resident.get("lagging copies", 0) == 4 * held.trained * copies


OWN = """
from neighbor_grpo.methods.forward import ForwardProcess
from pydantic.dataclasses import dataclass

@dataclass(frozen=True)
class Mine(ForwardProcess):
    name: str = "mine"
    {}
    def loss(self, policy, rows):
        at = rows.flat()
        both = policy(at.x, at.t) + policy.lagging("old", at.x, at.t)
        return both.flatten(1).mean(1), {{}}
"""


def test_a_copy_that_is_not_declared_is_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "mine.py").write_text(OWN.format("drawn_by = 'ema'"))
    with pytest.raises(UserError, match=r"'ema'.*declare it"):
        load_config(None, [f"method.name={tmp_path / 'mine.py'}:Mine"])
    (tmp_path / "late.py").write_text(OWN.format(""))
    with pytest.raises(UserError, match=r"'old'.*declare it"):
        plan(load_config(None, [f"method.name={tmp_path / 'late.py'}:Mine"]))


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


def test_a_loss_without_gradient_is_a_users_mistake(tiny_flux, tmp_path):
    file = tmp_path / "detached.py"
    file.write_text(DETACHED)
    with pytest.raises(UserError, match="without detach"):
        Trainer(load_config(None, [f"method.name={file}:Detached", *settings(tiny_flux, tmp_path)])).run()


@pytest.mark.parametrize(("name", "states"), [("v_grpo", 4), ("dgpo", 24)])
def test_a_batch_of_the_update_counts_the_states_of_a_row(name, states):
    """What is advised for less memory is as large as it can be, in whole rows."""
    config = load_config(None, [f"method.name={name}", "batch.update=96", "batch.rollout=4", "batch.decode=1"])
    whole = estimate(config, "cpu")
    assert whole.rows["update"] == 96 and whole.deciding == "update"
    resident, activations = sum(whole.resident.values()), whole.phases["update"]["activations"]
    found = fit(config, Place("cpu", resident + whole.phases["update"]["choices"] + 0.6 * activations))
    assert 0.4 * 96 < found.estimate.rows["update"] < 0.7 * 96 and found.estimate.rows["update"] % states == 0
