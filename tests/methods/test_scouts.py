"""Scouts: which drafts are chosen, that a chosen one is drawn again alone, and that drafts reach nothing but the choice."""

import pytest
import torch
from runs import metrics, settings
from safetensors.torch import load_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods import METHODS
from neighbor_grpo.methods.scouts import Recorded, check_scouts, choose, drafting, replay
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.plan import plan
from neighbor_grpo.run.findings import early
from neighbor_grpo.training.scouting import rank_correlation
from neighbor_grpo.training.trainer import Trainer

SAME = "method.num_steps=3"
GRID = [1.0, 0.75, 0.4, 0.0]
METHODS_OF_ONE_NOISE = {
    "neighbor": {"num_anchors": 2, "num_train_steps": 2},
    "nft": {"num_train_steps": 2},
    "awm": {"num_train_steps": 2},
    "v_grpo": {"num_train_steps": 2},
    "dgpo": {"num_train_steps": 2},
}


def made(name, **more):
    return METHODS[name](group_size=4, num_steps=3, **METHODS_OF_ONE_NOISE[name] | more)


def test_the_choice_by_hand():
    scores = torch.tensor([[0.0, 3.0, -4.0, 1.0, -1.0, 2.0]])
    assert choose(scores, 4, "best_worst", []).tolist() == [[1, 2, 4, 5]]
    assert choose(scores, 3, "best_worst", []).tolist() == [[1, 2, 5]]  # of an odd number, one more of the best
    assert choose(scores, 3, "deviation", []).tolist() == [[1, 2, 5]]
    assert choose(scores, 2, "deviation", []).tolist() == [[1, 2]]
    drawn = torch.stack([choose(scores, 2, "random", [torch.Generator().manual_seed(n)])[0] for n in range(300)])
    assert (drawn[:, 0] < drawn[:, 1]).all() and torch.bincount(drawn.flatten()).min() > 60  # 100 expected
    for how in ("best_worst", "deviation", "random"):
        assert choose(scores, 6, how, [torch.Generator()]).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_rank_correlation_by_hand():
    one = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    two = torch.tensor([[10.0, 20.0, 40.0, 30.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert rank_correlation(one, two) == pytest.approx((0.8 - 1.0) / 2)  # 1 - 6·2/(4·15) and -1; the third has no spread


def test_drafts_that_foretell_nothing_are_named():
    config = load_config(None, ["scouts.count=24"])
    said = [[finding.name for finding in early({"scouts/rank_correlation": value}, config)] for value in (0.29, 0.31)]
    assert said == [["scouts"], []] and early({}, config) == []


def velocity(x, t):
    return torch.tanh(x) + t


@pytest.mark.parametrize("name", METHODS_OF_ONE_NOISE)
@pytest.mark.parametrize("count", [4, 9])
def test_a_chosen_sample_is_the_one_drawn_alone(name, count):
    generator = torch.Generator().manual_seed(5)
    drawn = Recorded(lambda n: torch.randn(2, n, 3, generator=generator))
    method = made(name)
    all_of_them = drafting(method, count, 3).rollout(velocity, drawn, GRID, Iteration(0)).leaves
    chosen = torch.tensor([[0, 1, 2, 3], [0, 1, count - 2, count - 1]])
    leaves = method.rollout(velocity, replay(drawn.drawn, chosen), GRID, Iteration(0)).leaves
    expected = torch.stack([group[places] for group, places in zip(all_of_them, chosen, strict=True)])
    assert torch.equal(leaves, expected)


@pytest.mark.parametrize("name", ["neighbor", "nft"])
def test_with_as_many_drafts_as_samples_it_is_the_run_without(tiny_flux, tmp_path, name):
    section = {"name": name, "group_size": 4, "num_steps": 3, **METHODS_OF_ONE_NOISE[name]}
    method = "method={" + ", ".join(f"{key}: {value}" for key, value in section.items()) + "}"
    found = []
    for case, more in (("a", ()), ("b", ("scouts.count=4", "scouts.steps=3"))):
        (tmp_path / case).mkdir()
        run = Trainer(load_config(None, settings(tiny_flux, tmp_path / case, method, *more))).run()
        found.append((metrics(run), load_file(run / "checkpoints" / "000003" / "weights.safetensors")))
    (plain, weights), (scouted, same) = found
    assert all(torch.equal(weight, same[key]) for key, weight in weights.items())
    assert [line["grad_norm"] for line in plain[1:]] == [line["grad_norm"] for line in scouted[1:]]
    assert all(line["nfe_old"] == 2 * before["nfe_old"] for line, before in zip(scouted[1:], plain[1:], strict=True))
    assert all(line["scouts/rank_correlation"] == pytest.approx(1.0) for line in scouted[1:])


def test_a_run_is_resumed_bit_for_bit_and_its_plan_counts_the_drafts(tiny_flux, tmp_path):
    more = (SAME, "scouts={count: 8, steps: 2}", "batch.rollout=8")  # a group at a time
    config = load_config(None, settings(tiny_flux, tmp_path, *more))
    run = Trainer(config).run()
    lines, counted = metrics(run), plan(config)
    assert (counted.samples, counted.drafts, counted.nfe_old) == (8, 16, (8 * 2 + 4 * 3) / 4)
    assert all((line["nfe_old"], line["scouts/drafts"], line["scouts/failed"]) == (7.0, 2.0, 0.0) for line in lines[1:])
    assert -1 <= lines[1]["scouts/rank_correlation"] <= 1
    Trainer.resume(run, ["iterations=4"]).run()
    (tmp_path / "again").mkdir()
    again = Trainer(load_config(None, settings(tiny_flux, tmp_path / "again", *more, "iterations=4"))).run()
    weights, same = (load_file(one / "checkpoints" / "000004" / "weights.safetensors") for one in (run, again))
    assert all(torch.equal(weight, same[key]) for key, weight in weights.items())


def test_drafts_take_memory_in_the_plan(tiny_flux, tmp_path):
    plain = load_config(None, settings(tiny_flux, tmp_path, SAME))
    scouted = load_config(None, settings(tiny_flux, tmp_path, SAME, "scouts={count: 64, steps: 3}"))
    ours, theirs = (estimate(config, "cpu") for config in (scouted, plain))
    assert ours.rows["rollout"] == 96 and ours.phases["rollout"]["states"] > 10 * theirs.phases["rollout"]["states"]
    assert ours.phases["update"] == theirs.phases["update"]


@pytest.mark.parametrize(
    ("method", "steps", "said"),
    [
        (METHODS["neighbor_late"](group_size=4, num_steps=8), 6, "scouts.steps=8"),
        (METHODS["flow_grpo"](group_size=4, num_steps=8), 6, "scouts.steps=8"),
        (METHODS["branch_grpo"](), 20, "one by one"),
        (METHODS["fdfo"](), 40, "one by one"),
    ],
)
def test_rollouts_that_cannot_be_drafted_are_refused(method, steps, said):
    with pytest.raises(UserError, match=said):
        check_scouts(method, 16, steps)


@pytest.mark.parametrize("name", ["neighbor_late", "flow_grpo", "dance_grpo", "mix_grpo"])
def test_noise_on_the_way_is_drafted_with_all_transitions(name):
    method = METHODS[name]()
    check_scouts(method, 2 * method.group_size, method.num_steps)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("scouts.count=3",), "less than method.group_size"),
        (("scouts.steps=6",), "exceeds method.num_steps"),
        (("scouts={steps: 3, fp8: true}", "model.quantize=int8"), "scouts.fp8"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_flux, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        load_config(None, settings(tiny_flux, tmp_path, *more))
