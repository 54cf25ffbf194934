"""What every method must do, whatever it does (a method added to METHODS is tested by being there)."""

import pytest
import torch
from toy import LATENT, TIMES, gradient, rollout, velocity

from neighbor_grpo.methods import METHODS

OVERRIDES = {
    "neighbor": [
        {}, {"temperature": 1.0}, {"distance": "final_x0"}, {"distance": "step_x0"}, {"weighting": "scale"},
        {"solver": "heun"}, {"solver": "dpmpp_3m"}, {"updates_per_rollout": 2}, {"solver": "euler", "reference": "literal"},
    ],
}
CASES = [
    pytest.param(METHODS[name](num_steps=len(TIMES) - 1, **override), id=f"{name}-{override}")
    for name in METHODS for override in OVERRIDES.get(name, [{}])
]
MU = torch.linspace(-1, 1, 12).reshape(LATENT)


def updates(method, tree, rewards, seed=3):
    return method.updates(tree, rewards, torch.Generator().manual_seed(seed))


def some_rewards(tree, seed=5):
    return torch.randn(tree.leaves.shape[:2], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", CASES)
def test_ratio_is_one_before_the_first_update(method):
    tree = rollout(method, MU)
    for decisions in updates(method, tree, some_rewards(tree)):
        for size in (1, 3, 1000):
            for rows in decisions.split(size):
                _, stats = method.loss(velocity(MU, rows.x, rows.t), rows)
                assert stats["log_ratio"] < 1e-6


@pytest.mark.parametrize("method", CASES)
def test_equal_rewards_give_no_gradient(method):
    tree = rollout(method, MU)
    for decisions in updates(method, tree, torch.full(tree.leaves.shape[:2], 0.37)):
        assert torch.equal(gradient(method, MU, decisions), torch.zeros(LATENT))


@pytest.mark.parametrize("method", CASES)
def test_rewards_of_the_other_sign_give_the_opposite_gradient(method):
    tree = rollout(method, MU)
    rewards = some_rewards(tree)
    for ours, theirs in zip(updates(method, tree, rewards), updates(method, tree, -rewards), strict=True):
        up, down = gradient(method, MU, ours), gradient(method, MU, theirs)
        assert up.abs().max() > 0
        torch.testing.assert_close(up, -down, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", CASES)
def test_gradient_does_not_depend_on_the_micro_batch(method):
    tree = rollout(method, MU)
    decisions = updates(method, tree, some_rewards(tree))[0]
    whole = gradient(method, MU, decisions)
    for size in (1, 3):
        torch.testing.assert_close(gradient(method, MU, decisions, size), whole, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", CASES)
def test_the_same_seed_is_the_same_run_bit_for_bit(method):
    runs = []
    for _ in range(2):
        tree = rollout(method, MU)
        runs.append([gradient(method, MU, d) for d in updates(method, tree, some_rewards(tree))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("method", CASES)
def test_learns_a_target(method):
    """Reward -||x0 - target||^2 with Adam on mu: the samples' mean distance falls by a third at least."""
    target, mu = torch.full(LATENT, 1.5), MU.clone().requires_grad_()
    optimizer = torch.optim.Adam([mu], lr=0.02)
    history = []
    for n in range(25):
        tree = rollout(method, mu.detach(), seed=n)
        rewards = -(tree.leaves - target).square().flatten(2).mean(-1)
        history.append(float(rewards.mean()))
        for decisions in updates(method, tree, rewards, seed=n):
            optimizer.zero_grad()
            loss, _ = method.loss(velocity(mu, decisions.x, decisions.t), decisions)
            loss.mean().backward()
            optimizer.step()
    assert sum(history[-5:]) > sum(history[:5]) * 2 / 3, history
