"""The study of gradients before training: its numbers from algebra, and the command on small methods."""

import json
import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from comparisons import comparison
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.config import load_config
from neighbor_grpo.training.doctor.patient import admitted, rows_of, thinned
from neighbor_grpo.training.doctor.statistics import Direction
from neighbor_grpo.training.study import KEPT, Gathered, Part, Studied, Study, _measured, _step, advice, study, tables


def gathered(*sets: torch.Tensor) -> Gathered:
    """Gathered vectors by time 0, 1, ..., and as a whole by the first set."""
    one = object.__new__(Gathered)
    one.vectors = defaultdict(list, {float(t): list(vectors) for t, vectors in enumerate(sets)} | {None: list(sets[0])})
    return one


def around(mean: torch.Tensor, n: int, std: float, seed: int) -> torch.Tensor:
    return mean + std * torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed))


def test_signal_noise_and_cosine_are_those_of_the_distribution():
    """Mean of length 2, noise of variance 0.25 in each of 100 dimensions: 25 / 4 groups give as much signal as noise."""
    a, b = torch.zeros(100), torch.zeros(100)
    a[0], b[0], b[1] = 2.0, 1.2, 1.6  # cosine 0.6
    part = gathered(around(a, 400, 0.5, 0)).part(None, gathered(around(b, 400, 0.5, 1)))
    assert part.found.signal == pytest.approx(4.0, rel=0.1) and part.found.enough == pytest.approx(25 / 4, rel=0.1)
    assert part.cosine == pytest.approx(0.6, abs=0.03) and part.flat == 0 and part.found.p_value < 0.001


def test_noise_has_no_signal_and_zeros_are_flat():
    one = gathered(around(torch.zeros(50), 64, 1.0, 3), torch.zeros(64, 50), torch.eye(50)[:1])
    noise, flat, single = (one.part(t, one) for t in (0.0, 1.0, 2.0))
    assert noise.found.p_value > 0.05 and noise.flat == 0
    assert flat.flat == 1 and flat.found.p_value == 1 and flat.cosine is None
    assert single.groups == 1 and single.found.p_value == 1


def test_weights_of_other_sizes_have_no_cosine():
    assert gathered(around(torch.ones(5), 9, 0.1, 0)).part(None, gathered(around(torch.ones(6), 9, 0.1, 0))).cosine is None


@pytest.fixture(scope="module")
def patient(tiny_flux, tmp_path_factory):
    with admitted(load_config(None, settings(tiny_flux, tmp_path_factory.mktemp("patient"), "prompts.per_iteration=2"))) as one:
        yield one


def test_the_parts_of_a_group_add_up_to_its_gradient(patient):
    one = Gathered(patient, 2)
    experience = patient.experience(0)
    for prompt in range(2):
        whole = thinned(patient.gradient(rows_of(experience, prompt), experience.cond), KEPT)
        torch.testing.assert_close(one.vectors[None][prompt], whole, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(thinned(one.mean, KEPT), torch.stack(one.vectors[None]).mean(0))
    assert sum(len(vectors) for t, vectors in one.vectors.items() if t is not None) == 2 * 2  # K = 2 times of each group


def test_a_step_has_its_length_and_is_taken_back(patient):
    before = {name: weight.detach().clone() for name, weight in patient.weights.items()}
    gradient = Gathered(patient, 2).mean
    measured = _measured(patient)
    with patient.restored():
        _step(patient, gradient, 0.5)
        moved = [weight - before[name] for name, weight in patient.weights.items()]
        assert sum(float(part.square().sum()) for part in moved) == pytest.approx(0.25, rel=1e-4)
        assert sum(float((m * g).sum()) for m, g in zip(moved, gradient, strict=True)) < 0
        assert _measured(patient) != measured
    assert all(torch.equal(weight, before[name]) for name, weight in patient.weights.items())
    assert _measured(patient) == measured


def found(name, p_value, enough, flat=0.0):
    part = Part(None, 8, flat, Direction(1.0, enough, p_value), 1.0)
    return Studied(name, 10.0, part, [part.__class__(0.5, 8, flat, part.found, 1.0)], {"reward": 1.0})


def test_the_cheapest_direction_is_advised_and_blind_times_are_named():
    methods = [found("dear", 0.001, 9.0), found("cheap", 0.001, 2.5, flat=0.8), found("chance", 0.4, 0.1)]
    lines = advice(Study({"reward": 0.0}, 1.0, methods), {})
    assert any(line.startswith("cheap has the cheapest direction: 25 ") and " 3 prompts" in line for line in lines)
    assert lines[0].startswith("cheap: more than half") and "0.500" in lines[0] and not any("dear" in line for line in lines)
    assert "finer reward" in advice(Study({}, 1.0, [found("chance", 0.4, 0.1)]), {})[-1]
    assert tables(Study({"reward": 0.0}, 1.0, methods)).count("\n| cheap |") == 2


def test_a_method_whose_step_leaves_the_bounds_is_not_advised():
    cheap, dear = found("cheap", 0.001, 2.0), found("dear", 0.001, 9.0)
    both = Study(
        {"reward": 0.0, "damage": 1.0}, 1.0, [replace(cheap, effect={"damage": 3.0}), replace(dear, effect={"damage": 1.2})]
    )
    lines = advice(both, {"damage": (-math.inf, 1.5)})
    assert lines[0].startswith("cheap: the step moves damage") and lines[1].startswith("dear has the cheapest")
    assert advice(both, {"damage": (-math.inf, 4.0)})[0].startswith("cheap has the cheapest")
    assert advice(both, {"damage": (-math.inf, 1.0)})[2].startswith("cheap has the cheapest")  # all leave them


def test_the_command_prints_tables_and_writes_no_run(tiny_flux, tmp_path, capsys):
    file = comparison(tmp_path, tiny_flux)
    assert main(["study", str(file), "--groups", "3", "--json", str(tmp_path / "study.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "study.json").read_text())
    assert [one["name"] for one in result["methods"]] == ["neighbor", "dance"] and not (tmp_path / "out").exists()
    for one in result["methods"]:
        assert one["whole"]["groups"] == 3 and one["effect"].keys() == result["before"].keys()
        assert all(
            one["name"] in line or "|" not in line for line in printed.splitlines() if line.startswith(f"| {one['name']}")
        )
    assert result["methods"][0]["evaluations"] == 4 * 3 + 3 * 4 and result["length"] > 0


def test_a_reward_without_spread_is_flat(tiny_flux, tmp_path):
    (tmp_path / "flat.py").write_text("def constant(images, prompts, metadata):\n    return [0.5] * len(images)\n")
    given = settings(tiny_flux, tmp_path, f"reward={tmp_path / 'flat.py'}:constant")
    result = study({"run": load_config(None, given)}, 3, lambda line: None)
    assert result.methods[0].whole.flat == 1 and result.length == 0 and "finer reward" in advice(result, {})[-1]
    assert result.methods[0].effect == result.before
