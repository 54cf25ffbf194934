"""Neighbours that part late: where they part, what they train, and the policy gradient that they follow."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from toy import LATENT, gradient, grid, rollout, some_rewards, updates

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.sde import KERNELS
from neighbor_grpo.flow.solvers import euler, solve
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import quasi_norm, z_score
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.gaussian import Transitions, transition
from neighbor_grpo.methods.neighbor_late import NeighborLate
from neighbor_grpo.planning.plan import plan
from neighbor_grpo.planning.work import CountingPolicy

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
SDE = [("flow", 0.7), ("dance", 0.3), ("cps", 0.5), ("neighbor", 0.3), ("churn", 0.1)]


@pytest.mark.parametrize("iteration", range(4))
@pytest.mark.parametrize(("sde", "eta"), SDE)
def test_the_gradient_is_the_policy_gradient_of_one_transition(sde, eta, iteration):
    """2·G·std^2 / b times the mean over the G rows that an SDE method trains at that state, of the same advantages.

    b = -(d mean / d v) / (t - s) is measured on the kernel, which is linear in v.
    """
    late = NeighborLate(sde=sde, eta=eta, weighting="none", num_steps=6, group_size=8, updates_per_rollout=1)
    tree, k = rollout(late, MU, prompts=1, iteration=iteration), late.place(Iteration(iteration))
    rewards = some_rewards(tree)
    (row,) = updates(late, tree, rewards, iteration=iteration)
    step, gaussian = tree.steps[k], FlowGRPO(sde=sde, eta=eta, group_size=8)
    rows = Transitions.cat([transition(tree, k, 0, [m], row.adv, 1, 1.0) for m in range(8)])
    forwards = CountingPolicy(()), CountingPolicy(())
    late.loss(forwards[0], row)
    gaussian.loss(forwards[1], rows)
    assert [counted.trained for counted in forwards] == [1, 8]
    mean = partial(KERNELS[sde], strength=eta)
    one = torch.ones(1, 1, dtype=torch.float64)
    b = float(mean(0 * one, 0 * one, step.t, step.s)[0] - mean(0 * one, one, step.t, step.s)[0]) / (step.t - step.s)
    expected = 2 * 8 * step.std**2 / b * gradient(gaussian, MU, rows)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient(late, MU, row), expected, rtol=0, atol=1e-6)


def test_the_ode_before_and_after_and_the_kernel_between():
    """Every transition again by hand, the solver's history started anew behind the parting."""
    method = NeighborLate(num_steps=10, sde="neighbor", eta=0.6, solver="dpmpp_3m", group_size=5, part_from=0.4, part_to=0.5)
    tree = rollout(method, MU)
    (k,) = method.partings
    assert [len(step.parent) for step in tree.steps] == [1] * k + [5] * (10 - k)
    assert [step.std > 0 for step in tree.steps] == [n == k for n in range(10)]
    assert tree.evaluations == k + 1 + 5 * (9 - k)
    asked = {step.t: step.v for step in tree.steps}
    times = grid(method)
    before = solve("dpmpp_3m", lambda x, t: asked[t], tree.root, times[: k + 1])
    after = solve("dpmpp_3m", lambda x, t: asked[t], tree.steps[k].y, times[k + 1 :])
    torch.testing.assert_close(before, tree.steps[k].x)
    torch.testing.assert_close(after, tree.leaves)
    step = tree.steps[k]
    x0, noise = step.x - step.t * step.v, step.x + (1 - step.t) * step.v
    z = (step.y - (1 - step.s) * x0 - step.s * 0.8 * noise) / (0.6 * step.s)
    assert step.std == pytest.approx(0.6 * step.s) and 0.8 < float(z.std()) < 1.2
    assert (z[:, 0] - z[:, 1]).abs().max() > 0.1


def test_every_optimizer_step_takes_the_same_rows():
    method = NeighborLate(updates_per_rollout=3)
    tree = rollout(method, MU)
    first, *others = updates(method, tree, some_rewards(tree))
    assert len(others) == 2 and all(torch.equal(rows.y, first.y) and torch.equal(rows.adv, first.adv) for rows in others)


def test_a_row_is_the_shared_state_with_all_members_as_choices():
    method = NeighborLate(weighting="none", p=0.5, updates_per_rollout=1)
    tree, k = rollout(method, MU), method.place(Iteration(0))
    rewards = some_rewards(tree)
    (rows,) = updates(method, tree, rewards)
    step = tree.steps[k]
    assert torch.equal(rows.x, step.x[:, 0]) and torch.equal(rows.y, step.y) and torch.equal(rows.v_old, step.v[:, 0])
    torch.testing.assert_close(rows.adv, quasi_norm(z_score(rewards), 0.5))
    (final,) = updates(NeighborLate(distance="final_x0", updates_per_rollout=1), tree, rewards)
    assert torch.equal(final.y, tree.leaves) and torch.equal(final.s, torch.zeros(2))
    (scaled,) = updates(NeighborLate(p=0.5, updates_per_rollout=1), tree, rewards)
    spread = (step.y - step.y.mean(1, keepdim=True)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(scaled.adv * ((step.t - step.s) * spread)[:, None], rows.adv)
    torch.testing.assert_close(euler(rows.x, rows.v_old, rows.t, torch.zeros(2)), step.x[:, 0] - step.t * step.v[:, 0])


@pytest.mark.parametrize(
    ("steps", "start", "end", "allowed"),
    [(8, 0.25, 0.9, range(2, 7)), (8, 0.0, 1.0, range(7)), (25, 0.25, 0.9, range(6, 22)), (4, 0.25, 0.9, range(1, 3))],
)
def test_the_parting_is_uniform_in_its_range_the_seeds_own_and_never_the_last(steps, start, end, allowed):
    method = NeighborLate(num_steps=steps, part_from=start, part_to=end)
    assert method.partings == allowed
    places = [method.place(Iteration(n)) for n in range(60 * len(allowed))]
    assert set(places) == set(allowed) and min(places.count(k) for k in allowed) > 30
    assert places == [method.place(Iteration(n)) for n in range(len(places))]
    assert places != [method.place(Iteration(n, seed=1)) for n in range(len(places))]


def test_the_plan_counts_what_a_group_shares():
    """k + 1 + 12·(7 - k) forwards, k = 2 ... 6: 41 on average; one row, four times."""
    counted = plan(load_config(None, ["method.name=neighbor_late", "iterations=100"]))
    assert counted.nfe_old == pytest.approx(41 / 12, rel=0.1) and counted.nfe_theta == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"part_from": 0.6, "part_to": 0.5}, "hold no transition"),
        ({"part_from": 0.95, "part_to": 1.0}, "the last never does"),
        ({"num_steps": 4, "part_from": 0.3, "part_to": 0.37}, "further apart"),
        ({"part_to": 1.2}, "less than or equal to 1"),
        ({"part_from": -0.1}, "greater than or equal to 0"),
        ({"eta": 0.0}, "greater than 0"),
        ({"sde": "neighbor"} | {"eta": 1.5}, "at most 1"),
        ({"sde": "cps", "eta": 1.01}, "at most 1"),
        ({"distance": "step_x0"}, "final_x0"),
    ],
)
def test_values_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValidationError) as caught:
        NeighborLate(**wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["sigma", "num_anchors", "num_train_steps", "train_from", "reference"])
def test_settings_that_mean_nothing_here_are_named_and_refused(key):
    with pytest.raises(UserError) as caught:
        load_config(None, ["method.name=neighbor_late", f"method.{key}=1"])
    assert f"method.{key}" in str(caught.value) and "neighbor_late" in str(caught.value)
    assert "\n" not in str(caught.value)
