"""FDFO: pairs, their difference, and an objective about the stored velocity."""

import math

import pytest
import torch
from pydantic import ValidationError
from toy import LATENT, gradient, loss_at, rollout, some_rewards, updates, velocity

from neighbor_grpo.methods.fdfo import FDFO

MU = torch.linspace(-1, 1, 12).reshape(LATENT)


def small(**settings):
    return FDFO(**{"group_size": 4, "num_steps": 5, "updates_per_rollout": 1} | settings)


def test_pairs_start_from_one_noise_and_stay_near():
    """Each start is normal; partners correlate e^-2w, and others do not."""
    method, w = small(churn=0.05), 0.05
    roots = rollout(method, MU, prompts=4000).root.flatten(2)
    assert float(roots.std()) == pytest.approx(1, abs=0.01)
    assert float((roots[:, 0] * roots[:, 1]).mean()) == pytest.approx(math.exp(-2 * w), abs=0.02)
    assert float((roots[:, 0] * roots[:, 2]).mean()) == pytest.approx(0, abs=0.02)
    assert [step.std > 0 for step in rollout(method, MU).steps] == [True] * 4 + [False]
    assert not any(step.std for step in rollout(small(churn_at="start"), MU).steps)


@pytest.mark.parametrize("surrogate", ["spo", "clip"])
def test_the_objective_by_hand(surrogate):
    method, elsewhere = small(surrogate=surrogate, clip=0.03), MU + 0.02
    tree = rollout(method, MU, prompts=1)
    rewards = some_rewards(tree)
    (rows,) = updates(method, tree, rewards)
    loss, _ = loss_at(method, elsewhere, rows)
    assert len(rows) == 4 * 5
    seen = set()
    for n in range(len(rows)):
        (i,) = [i for step in tree.steps for i in range(4) if torch.equal(step.x[0, i], rows.x[n])]
        j = i ^ 1
        delta, d = float(rewards[0, i] - rewards[0, j]) / 2, (tree.leaves[0, i] - tree.leaves[0, j]) / 2
        hat = d / (d.square().mean() + 1e-6)
        v, old = (velocity(mu, rows.x[n], float(rows.t[n])) for mu in (elsewhere, MU))
        rho = (hat.square().mean() - (v - (old - hat)).square().mean()).exp()
        if surrogate == "spo":
            expected = -delta * rho + abs(delta) / 0.06 * (rho - 1) ** 2
        else:
            expected = -min(delta * rho, delta * rho.clamp(0.97, 1.03))
        seen.add((i, float(rows.t[n])))
        assert float(loss[n]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
    assert len(seen) == 20


def test_the_gradient_at_the_old_policy_is_the_difference_of_the_pictures():
    """d loss / d v = (2/D)·dR·d^: more reward for more x0, so for less v."""
    method = small()
    tree = rollout(method, MU, prompts=1)
    (rows,) = updates(method, tree, some_rewards(tree))
    mu = MU.clone().requires_grad_()
    pull = rows.adv.view(-1, 1, 1) * rows.direction * velocity(mu, rows.x, rows.t)
    (2 / MU.numel() * pull.flatten(1).sum(1).mean()).backward()
    torch.testing.assert_close(gradient(method, MU, rows), mu.grad, rtol=1e-3, atol=1e-5)


def test_partners_are_interchangeable_and_equal_rewards_teach_nothing():
    method = small(group_size=2)
    tree = rollout(method, MU, prompts=1)
    credit = method.credit(tree, torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2))
    assert credit.tolist() == [[-1.5, 1.5]]
    assert method.credit(tree, torch.tensor([[4.0, 1.0]]), torch.zeros(1, 2)).tolist() == [[1.5, -1.5]]
    assert method.credit(tree, torch.tensor([[4.0, float("nan")]]), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert method.credit(tree, torch.tensor([[4.0, 4.0]]), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_rows_are_shuffled_over_the_optimizer_steps():
    method = small(updates_per_rollout=4, num_train_steps=3)
    tree = rollout(method, MU, prompts=2)
    decided = updates(method, tree, some_rewards(tree))
    assert [len(rows) for rows in decided] == [2 * 3] * 4
    states = torch.cat([rows.x for rows in decided]).flatten(1)
    assert len(states.unique(dim=0)) == 2 * 4 * 3


@pytest.mark.parametrize(
    "wrong", [{"group_size": 3}, {"num_train_steps": 6}, {"updates_per_rollout": 3}, {"churn": 0.0}, {"surrogate": "ppo"}]
)
def test_values_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValidationError):
        small(**wrong)
