"""What sets the SDE methods apart: which transitions are drawn, shared, trained and how they are credited."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import LATENT, gradient, grid, loss_at, rollout, some_rewards, updates, velocity

from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods import METHODS
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.dance_grpo import DanceGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import FlowGRPOFast, MixGRPO, MixGRPOFlash, MixGRPOFlashStar
from neighbor_grpo.methods.tree import Step

MU = torch.linspace(-1, 1, 12).reshape(LATENT)


def trained(method, tree, iteration=0):
    """(t, prompt) of every transition that every update trains; one row may hold several."""
    steps = updates(method, tree, some_rewards(tree), iteration=iteration)
    return [[(float(d.t[row]), int(d.prompt[row])) for row, _ in d.weight.nonzero().tolist()] for d in steps]


def test_loss_is_ppo_on_the_gaussian_density():
    """An independent computation: torch's Normal, mean over dimensions, clip by hand."""
    method = DanceGRPO(group_size=2, updates_per_rollout=1, num_train_steps=3, num_steps=4, clip=1e-3)
    tree = rollout(method, MU, prompts=1)
    (d,) = updates(method, tree, torch.tensor([[0.0, 1.0]]))
    elsewhere = MU + 0.01
    loss, stats = loss_at(method, elsewhere, d)
    expected = torch.zeros(len(d))
    for row, choice in d.weight.nonzero().tolist():
        t, s, x, y = float(d.t[row]), float(d.s[row]), d.x[row], d.y[row, choice]
        density = []
        for mu in (elsewhere, MU):
            v = velocity(mu, x, t)
            mean = x - (t - s) * v - 0.3**2 * (t - s) / (2 * t) * (x + (1 - t) * v)
            density.append(torch.distributions.Normal(mean, 0.3 * (t - s) ** 0.5).log_prob(y).mean())
        rho, a = float((density[0] - density[1]).exp()), float(d.adv[row, choice])
        expected[row] -= min(a * rho, a * min(max(rho, 1 - 1e-3), 1 + 1e-3)) * 5 / 6  # rows over transitions
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert stats["max/ratio/log_max"] > 1e-4


def test_advantages_are_clamped():
    method = FlowGRPO(group_size=2, num_steps=2, adv_clip=0.5, updates_per_rollout=1)
    tree = rollout(method, MU, prompts=1)
    (d,) = updates(method, tree, torch.tensor([[0.0, 1.0]]))  # z-scores of -1 and 1
    whole = FlowGRPO(group_size=2, num_steps=2, updates_per_rollout=1)
    torch.testing.assert_close(gradient(method, MU, d), 0.5 * gradient(whole, MU, d))


def test_divergence_is_that_of_two_gaussians_of_one_std():
    """KL(N(m, s^2) || N(m', s^2)) per dimension by torch.distributions, times the weight, on top of the surrogate."""
    plain, held = (FlowGRPO(group_size=2, num_steps=3, updates_per_rollout=1, kl=kl) for kl in (0.0, 0.2))
    tree = rollout(plain, MU, prompts=1)
    (d,) = updates(plain, tree, torch.tensor([[0.0, 1.0]]))
    reference = MU + 0.1
    apart, stats = loss_at(held, MU, d, reference)
    mean, std = held.kernel(d.x, velocity(MU, d.x, d.t), d.t, d.s)
    other, _ = held.kernel(d.x, velocity(reference, d.x, d.t), d.t, d.s)
    scale = std.view(-1, 1, 1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, scale), normal(other, scale)).flatten(1).mean(1)
    torch.testing.assert_close(apart - loss_at(plain, MU, d)[0], 0.2 * expected)
    torch.testing.assert_close(stats["kl"], expected.mean())


# ---------------------------------------------------------------- lines


def test_flow_trains_all_transitions_but_the_last_of_every_sample_in_two_steps():
    method = FlowGRPO()
    tree = rollout(method, MU)
    assert [step.std > 0 for step in tree.steps] == [True] * 9 + [False]
    first, second = trained(method, tree)
    counts = Counter(first + second)
    assert len(first) == len(second) == 2 * 12 * 9  # half of each of two groups
    assert set(counts.values()) == {24} and len(counts) == 2 * 9


def test_flow_divides_by_the_std_of_all_rewards():
    method = FlowGRPO(group_size=4)
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 10.0, 20.0, 30.0]])
    adv = method.credit(None, rewards[:1], rewards)
    torch.testing.assert_close(adv[0], (rewards[0] - 1.5) / float(np.std(rewards.numpy())))


def test_dance_starts_from_one_noise_and_draws_fourteen_transitions_for_each_sample():
    method = DanceGRPO()
    tree = rollout(method, MU)
    assert tree.steps[0].x.shape[1] == 1 and tree.evaluations == 1 + 24 * 12
    drawn = trained(method, tree)
    assert [len(rows) for rows in drawn] == [2 * 4 * 14] * 3
    per_sample = Counter(t for rows in drawn for t, _ in rows)
    assert tree.steps[-1].t not in per_sample and 10 < len(per_sample) <= 24
    assert len(set(per_sample.values())) > 1  # not the same fourteen for all


def test_the_picture_is_the_predicted_data():
    for name in METHODS:
        for step in rollout(METHODS[name](), MU).steps[-1:]:  # none where the finished latents alone are kept
            torch.testing.assert_close(step.y, step.x - step.t * step.v)


# ---------------------------------------------------------------- the window


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("progressive", {0: 0, 24: 0, 25: 1, 499: 19, 500: 20, 524: 20, 525: 0}),
        ("frozen", {0: 0, 1000: 0}),
    ],
)
def test_place_of_the_window(strategy, expected):
    """N = 25, w = 4: places 0 to 20, the last reaching the last but one transition."""
    method = MixGRPO(strategy=strategy)
    assert {n: method.place(Iteration(n)) for n in expected} == expected


def test_decay_stays_fall_linearly():
    method = MixGRPO(strategy="decay", dwell=21, dwell_min=1)
    stays = Counter(method.place(Iteration(n)) for n in range(sum(range(1, 22))))
    assert [stays[place] for place in range(21)] == list(range(21, 0, -1))
    assert method.place(Iteration(sum(range(1, 22)))) == 0


def test_exponential_decay():
    method = MixGRPO(strategy="exp_decay", dwell=20)
    expected = [math.ceil(20 * math.exp(-0.1 * max(0, place - 13))) for place in range(21)]
    stays = Counter(method.place(Iteration(n)) for n in range(sum(expected)))
    assert [stays[place] for place in range(21)] == expected


def test_random_places_reach_both_ends_and_are_the_same_wherever_asked():
    method = MixGRPO(strategy="random")
    places = [method.place(Iteration(n)) for n in range(500)]
    assert (min(places), max(places)) == (0, 20) and places == [method.place(Iteration(n)) for n in range(500)]
    assert all(count > 5 for count in Counter(places).values())
    others = [method.place(Iteration(n, seed=1)) for n in range(500)]
    assert sum(a == b for a, b in zip(places, others, strict=True)) < 60  # another seed is another walk: about 1 in 21 agree


@pytest.mark.parametrize("iteration", [0, 60, 500])
def test_mix_shares_what_comes_before_the_window_and_trains_the_window(iteration):
    method = MixGRPO()
    start = iteration // 25
    tree = rollout(method, MU, iteration=iteration)
    assert [k for k, step in enumerate(tree.steps) if step.std > 0] == list(range(start, start + 4))
    assert tree.evaluations == start + 1 + 12 * (24 - start)
    times = {round(t, 5) for update in trained(method, tree) for t, _ in update}
    assert times == {round(t, 5) for t in grid(method)[start : start + 4]}
    assert [len(update) for update in trained(method, tree)] == [2 * 3 * 4] * 4


@pytest.mark.parametrize(
    ("method", "iteration", "steps"),
    [
        (MixGRPOFlash(), 0, 4 + 9),
        (MixGRPOFlash(), 500, 24 + 1),
        (MixGRPOFlash(), 100, 8 + 7),
        (MixGRPOFlashStar(), 0, 4 + 5),
        (MixGRPOFlashStar(tail=0.19), 77, 4 + 4),
    ],
)
def test_flash_shortens_the_tail_and_ends_in_data(method, iteration, steps):
    tree = rollout(method, MU, iteration=iteration)
    assert len(tree.steps) == steps and tree.steps[-1].s == 0.0
    kept = [step.t for step in tree.steps]
    assert kept == sorted(kept, reverse=True)
    assert set(np.round(grid(method)[: method.place(Iteration(iteration)) + 5], 6)) <= set(np.round([*kept, 0.0], 6))


def test_flow_fast_is_a_window_of_two_in_the_first_half():
    method = FlowGRPOFast()
    assert {method.place(Iteration(n)) for n in range(200)} == {0, 1, 2, 3}


# ---------------------------------------------------------------- the branching tree


def test_branch_counts():
    """Splits at 0, 3, 6, 9 of 20: 203 states to evaluate, 218 transitions (13.6 a leaf), 202 of them stochastic."""
    method = BranchGRPO()
    tree = rollout(method, MU, prompts=1)
    assert (tree.evaluations, tree.nominal_evaluations) == (203, 218)
    rows = updates(method, tree, some_rewards(tree))
    assert sum(map(len, trained(method, tree))) == 202 and len(rows) == 17
    assert sum(map(len, rows)) == 202 - 15 and max(map(len, rows)) <= 12  # siblings are one row


def test_branch_credit_by_hand():
    """Two splits, four leaves: rewards 1, 3, 5, 11 -> states 2, 8 -> z-scores; the root's single state has none."""
    method = BranchGRPO(num_steps=4, splits=[0, 2], group_size=4)
    tree = rollout(method, MU, prompts=1)
    rewards = torch.tensor([[1.0, 3.0, 5.0, 11.0]])
    credit = method.credit(tree, rewards, rewards)
    leaves, states = z_score(rewards), z_score(torch.tensor([[2.0, 8.0]]))
    torch.testing.assert_close(credit, torch.cat([states, states, leaves, leaves], dim=1))
    assert states.tolist() == [[-1.0, 1.0]]
    wide = BranchGRPO(num_steps=4, splits=[0, 2], branching=3, group_size=9)
    rewards9 = torch.tensor([[1.0, 3.0, 5.0, 11.0, 0.0, 1.0, 2.0, 2.0, 2.0]])
    credit = wide.credit(rollout(wide, MU, prompts=1), rewards9, rewards9)
    torch.testing.assert_close(credit[:, :3], z_score(torch.tensor([[3.0, 4.0, 2.0]])))
    late = BranchGRPO(num_steps=4, splits=[1, 2], group_size=4)
    credit = late.credit(rollout(late, MU, prompts=1), rewards, rewards)
    assert float(credit[0, 0]) == 0.0  # one state at depth 1


def test_softmax_fusion_weighs_siblings_by_their_likelihood():
    method = BranchGRPO(num_steps=3, splits=[1], group_size=2, fusion="softmax")
    x = torch.zeros(1, 1, 4)
    y = torch.tensor([[[0.1] * 4, [0.4] * 4]])
    step = Step(0.9, 0.5, 0.3 * 0.4**0.5, x, torch.zeros_like(x), y, torch.tensor([0, 0]))
    normal = torch.distributions.Normal(0.0, 0.3 * 0.4**0.5)
    weight = torch.softmax(normal.log_prob(torch.tensor([0.1, 0.4])), 0)
    fused = method._fuse(step, torch.tensor([[2.0, 6.0]]))
    assert float(fused) == pytest.approx(float(weight @ torch.tensor([2.0, 6.0])), rel=1e-5)


def test_depth_pruning_leaves_out_transitions_and_slides_up_to_the_last_split():
    method = BranchGRPO(prune_depths=[15, 16], slide_every=10)
    everything = set(range(19))
    assert method.trained(9) == everything - {15, 16}
    assert method.trained(10) == everything - {14, 15}
    assert method.trained(10_000) == everything - {9, 10}
    tree = rollout(method, MU)
    times = {round(t, 6) for update in trained(method, tree, 10) for t, _ in update}
    assert times == {round(tree.steps[k].t, 6) for k in everything - {14, 15}}


@pytest.mark.parametrize(("keep", "kept"), [("best", [4, 5, 6, 7]), ("extremes", [0, 1, 6, 7]), ("all", range(8))])
def test_width_pruning_keeps_lines_after_the_last_split(keep, kept):
    method = BranchGRPO(num_steps=6, splits=[0, 1, 2], group_size=8, keep=keep, edges_per_update=1000)
    tree = rollout(method, MU, prompts=1)
    (d,) = updates(method, tree, torch.arange(8.0)[None])
    for k, step in enumerate(tree.steps[:-1]):
        rows = d.y[(d.weight > 0) & (d.t == torch.tensor(step.t))[:, None]]
        expected = step.y[0] if k <= 2 else step.y[0, list(kept)]
        assert len(rows) == len(expected)
        assert all((expected == row).flatten(1).all(1).any() for row in rows)


def test_mix_draws_and_trains_the_splits_only():
    method = BranchGRPO(mix=True)
    tree = rollout(method, MU)
    assert [k for k, step in enumerate(tree.steps) if step.std > 0] == [0, 3, 6, 9]
    assert sum(map(len, trained(method, tree))) == 2 * (2 + 4 + 8 + 16)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("mix_grpo", {"window": 25}, "window (25) is longer than the 24 transitions"),
        ("mix_grpo_flash", {"window": 9, "num_steps": 9}, "longer than the 8"),
        ("mix_grpo", {"dwell": 2, "dwell_min": 3}, "dwell_min (3) exceeds dwell (2)"),
        ("mix_grpo", {"updates_per_rollout": 5}, "must divide group_size"),
        ("dance_grpo", {"num_train_steps": 25}, "exceeds the 24 stochastic transitions"),
        ("flow_grpo", {"sde": "cps", "eta": 1.5}, "share of the noise"),
        ("branch_grpo", {"splits": [0, 3, 6]}, "3 splits into 2 give 8 leaves, not group_size (G = 16)"),
        ("branch_grpo", {"splits": [0, 3, 6, 19]}, "rising order from 0 to 18"),
        ("branch_grpo", {"splits": [3, 0, 6, 9]}, "rising order"),
        ("branch_grpo", {"prune_depths": list(range(19))}, "leaves no transition"),
        ("branch_grpo", {"mix": True, "prune_depths": [0, 3, 6, 9]}, "leaves no transition"),
        ("branch_grpo", {"prune_depths": [20]}, "transitions 0 to 19"),
        ("branch_grpo", {"keep": "extremes", "group_size": 2, "splits": [0]}, "multiple of 4"),
    ],
)
def test_values_that_do_not_fit_are_refused(name, wrong, message):
    with pytest.raises(ValidationError) as caught:
        METHODS[name](**wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_a_branch_is_worth_its_scored_leaves(fusion):
    """Leaves without a score count neither for nor against their parent; a parent without any scored leaf has no credit."""
    method = METHODS["branch_grpo"](group_size=8, num_steps=5, splits=(0, 1, 2), fusion=fusion)
    tree, nan = rollout(method, torch.zeros(LATENT), prompts=1), float("nan")
    level = [len(step.parent) for step in tree.steps]
    assert level[:3] == [2, 4, 8]

    def of_the_second_split(rewards):
        return method.credit(tree, torch.tensor([rewards]), torch.tensor([rewards])).split(level, dim=1)[1][0]

    same = of_the_second_split([1.0, 1.0, 5.0, 5.0, 2.0, 2.0, 8.0, 8.0])  # siblings alike: every fusion is their value
    torch.testing.assert_close(same, z_score(torch.tensor([[1.0, 5.0, 2.0, 8.0]]))[0])
    torch.testing.assert_close(of_the_second_split([1.0, nan, 5.0, 5.0, nan, 2.0, 8.0, nan]), same)
    lost = of_the_second_split([1.0, nan, 5.0, 5.0, nan, nan, 8.0, nan])
    torch.testing.assert_close(lost, z_score(torch.tensor([[1.0, 5.0, nan, 8.0]]))[0])
