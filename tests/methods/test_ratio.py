"""The ratios of the SDE methods, GRPO-Guard's and Flow-DPPO's beside PPO's, and the weight of a transition, by algebra."""

from dataclasses import replace

import pytest
import torch
from toy import LATENT, gradient, loss_at, rollout, some_rewards, updates, velocity

from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import MixGRPO

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
ELSEWHERE = MU + 0.05 * torch.randn(LATENT, generator=torch.Generator().manual_seed(0))


def made(**settings):
    """A method and the rows of one optimizer step, every one a transition of its own."""
    method = FlowGRPO(group_size=6, num_steps=5, updates_per_rollout=1, **settings)
    tree = rollout(method, MU)
    return method, updates(method, tree, some_rewards(tree))[0]


def densities(method, row):
    """mean, old mean, std, log ratio of a row, by torch's Normal."""
    t, s = float(row.t), float(row.s)
    means = [method.kernel(row.x, velocity(mu, row.x, t), t, s) for mu in (ELSEWHERE, MU)]
    logs = [torch.distributions.Normal(mean, float(std)).log_prob(row.y[:, 0]).mean() for mean, std in means]
    return means[0][0], means[1][0], float(means[0][1]), float(logs[0] - logs[1])


def test_guards_ratio_has_no_drift_and_the_scale_of_the_mean():
    """rho = exp((log ratio + mean((mean - old)^2) / (2 std^2))·std), clipped, over t - s."""
    method, rows = made(ratio="guard", clip=1e-3)
    loss, _ = loss_at(method, ELSEWHERE, rows)
    sides = set()
    for n, row in enumerate(rows.split(1)):
        mean, old, std, log_ratio = densities(method, row)
        rho = torch.tensor((log_ratio + float((mean - old).square().mean()) / (2 * std**2)) * std).exp()
        a = float(row.adv)
        expected = -min(a * rho, a * rho.clamp(1 - 1e-3, 1 + 1e-3)) / float(row.t - row.s)
        sides.add(bool(rho > 1 + 1e-3) - bool(rho < 1 - 1e-3))
        assert float(loss[n]) == pytest.approx(float(expected), abs=1e-4)
    assert sides == {-1, 0, 1}


def test_at_the_old_policy_guards_gradient_is_ppos_times_std_over_the_step():
    guard, rows = made(ratio="guard")
    for row in rows.split(1):
        plain = gradient(replace(guard, ratio="ppo"), MU, row)
        std = float(guard.kernel(row.x, row.v_old, row.t, row.s)[1])
        torch.testing.assert_close(gradient(guard, MU, row), plain * std / float(row.t - row.s), rtol=1e-3, atol=1e-5)


def test_dppo_drops_what_is_far_and_moves_further_out():
    """The divergence of two normals by torch.distributions; what it keeps has the plain gradient, however large its ratio."""
    method, rows = made(ratio="dppo")
    kinds = set()
    distances = []
    for row in rows.split(1):
        mean, old, std, _ = densities(method, row)
        normal = torch.distributions.Normal
        distances.append(float(torch.distributions.kl_divergence(normal(mean, std), normal(old, std)).mean()))
    method = replace(method, clip=sorted(distances)[len(distances) // 2])
    for row, distance in zip(rows.split(1), distances, strict=True):
        log_ratio, a = densities(method, row)[3], float(row.adv)
        far, out = distance > method.clip * (1 - 1e-4), (log_ratio > 0) == (a > 0)
        kinds.add((far, out))
        loss, figures = loss_at(method, ELSEWHERE, row)
        assert float(loss) == pytest.approx(0 if far and out else -a * float(torch.tensor(log_ratio).exp()), abs=1e-4)
        assert float(figures["ratio/clipped"]) == float(far and out)
        assert (gradient(method, ELSEWHERE, row).abs().max() > 0) == (not (far and out))
    assert len(kinds) == 4


@pytest.mark.parametrize("method", [MixGRPO(updates_per_rollout=1), BranchGRPO(edges_per_update=1000), FlowGRPO()])
def test_std_weighting_multiplies_by_std_over_the_trained_transitions_mean(method):
    tree = rollout(method, MU)
    for plain, heavy in zip(
        *(updates(replace(method, weighting=w), tree, some_rewards(tree)) for w in ("none", "std")), strict=True
    ):
        mean = sum(stds := [step.std for step in tree.steps if step.std]) / len(stds)
        torch.testing.assert_close(heavy.weight, plain.weight * plain.std[:, None] / mean)
        weighted = loss_at(method, ELSEWHERE, heavy)[0]
        torch.testing.assert_close(weighted, loss_at(method, ELSEWHERE, plain)[0] * plain.std / mean)
