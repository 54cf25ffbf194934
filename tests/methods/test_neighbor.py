import math

import pytest
import torch
from pydantic import ValidationError
from toy import LATENT, gradient, loss_at, rollout, velocity

from neighbor_grpo.flow.solvers import euler
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import quasi_norm, z_score
from neighbor_grpo.methods.neighbor import Neighbor

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
ALL = {"num_steps": 8, "num_train_steps": 8, "num_anchors": 12}  # every transition, every member an anchor


def decide(method, tree, rewards, seed=0):
    return method.updates(
        tree, method.credit(tree, rewards, rewards), [torch.Generator().manual_seed(seed)] * len(rewards), Iteration(0)
    )


def rewards_of(tree):
    return torch.randn(tree.leaves.shape[:2], generator=torch.Generator().manual_seed(1))


def test_neighbourhood_is_normal_with_correlation_one_minus_sigma_squared():
    """Eq. 7: unit variance, pairs correlate 1 - sigma^2 and lie 2·sigma^2·D apart."""
    method, seen = Neighbor(sigma=0.3, num_steps=4), {}
    size, generator = 40_000, torch.Generator().manual_seed(0)

    def noise(n):
        return torch.randn(1, n, size, generator=generator)

    def look(x, t):
        seen.setdefault(t, x)
        return torch.zeros_like(x)

    method.rollout(look, noise, [1.0, 0.7, 0.5, 0.2, 0.0], Iteration(0))
    x = seen[1.0][0]
    assert torch.allclose(x.var(1), torch.ones(12), atol=0.03)
    correlation = torch.corrcoef(x)[~torch.eye(12, dtype=torch.bool)]
    assert torch.allclose(correlation, torch.full_like(correlation, 0.91), atol=0.01)
    apart = torch.pdist(x).square() / (2 * 0.09 * size)
    assert torch.allclose(apart, torch.ones_like(apart), atol=0.05)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 8), ("dpmpp_2m", 8), ("dpmpp_3m", 8), ("heun", 16)])
def test_evaluations_are_counted_per_sample(solver, calls):
    assert rollout(Neighbor(solver=solver), MU).evaluations == 12 * calls


def test_zero_sum_identity():
    """At rho = 1 the gradient of J is (2/tau)·sum_i A_i·x_s^(i)·d x^theta / d theta, x^theta = x - (t - s)·v."""
    method = Neighbor(**ALL, updates_per_rollout=1, temperature=5.0)
    tree = rollout(method, MU, prompts=1)
    (decisions,) = decide(method, tree, rewards_of(tree))
    assert decisions.adv.sum(-1).abs().max() < 1e-6
    mu = MU.clone().requires_grad_()
    pull = (decisions.adv[..., None, None] * decisions.y).sum(1)  # [R, *latent], no softmax weight, no anchor in it
    anchor = euler(decisions.x, velocity(mu, decisions.x, decisions.t), decisions.t, decisions.s)
    (-(2 / 5.0) * (pull * anchor).sum() / len(decisions)).backward()
    torch.testing.assert_close(gradient(method, MU, decisions), mu.grad, rtol=1e-3, atol=1e-6)


def test_temperature_scales_the_gradient_and_nothing_else():
    tree = rollout(Neighbor(**ALL), MU)
    grads = {}
    for tau in (1.0, 4.0, "dim"):
        method = Neighbor(**ALL, temperature=tau)
        grads[tau] = gradient(method, MU, decide(method, tree, rewards_of(tree))[0])
    torch.testing.assert_close(grads[1.0], 4 * grads[4.0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(grads[1.0], math.prod(LATENT) * grads["dim"], rtol=1e-3, atol=1e-6)


def first_log_ratio(solver, reference):
    method = Neighbor(**ALL, updates_per_rollout=1, solver=solver, reference=reference, temperature=1.0)
    tree = rollout(method, MU)
    (decisions,) = decide(method, tree, rewards_of(tree))
    return float(loss_at(method, MU, decisions)[1]["max/ratio/log_max"])


def test_literal_reference_is_the_stored_one_for_euler_and_off_for_dpmpp():
    assert first_log_ratio("euler", "literal") < 1e-5
    assert first_log_ratio("dpmpp_2m", "stored") < 1e-6
    assert first_log_ratio("dpmpp_2m", "literal") > 1e-2


def test_literal_reference_compares_with_the_rollouts_own_next_state():
    """Alg. 1: pi_old is the softmax over distances from x_s^(j) itself, whose own distance is zero."""
    method = Neighbor(**ALL, updates_per_rollout=1, reference="literal", temperature=1.0)
    tree = rollout(method, MU, prompts=1)
    (decisions,) = decide(method, tree, rewards_of(tree))
    old = euler(decisions.x, decisions.v_old, decisions.t, decisions.s)
    nearest = (decisions.y - old[:, None]).flatten(2).norm(dim=-1).amin(-1)
    assert nearest.max() < 1e-5


def test_transitions_are_drawn_without_replacement_from_all_and_the_last_is_among_them():
    method = Neighbor(num_train_steps=3, num_anchors=2)
    tree = rollout(method, MU, prompts=3)
    starts = {round(step.t, 6) for step in tree.steps}
    seen = set()
    for seed in range(40):
        for decisions in decide(method, tree, rewards_of(tree), seed):
            for p in range(3):
                times = [round(t, 6) for t in decisions.t[decisions.prompt == p].tolist()]
                assert len(times) == len(set(times)) == 3
                seen |= set(times)
    assert seen == starts
    assert float(tree.steps[-1].s) == 0.0


def test_one_optimizer_step_per_anchor_or_fewer():
    tree = rollout(Neighbor(), MU)
    for updates, rows in ((None, 2 * 4), (4, 2 * 4), (2, 2 * 4 * 2), (1, 2 * 4 * 4)):
        decided = decide(Neighbor(updates_per_rollout=updates), tree, rewards_of(tree))
        assert [len(d) for d in decided] == [rows] * (updates or 4)
        anchors = torch.cat([d.x[d.prompt == 0] for d in decided])
        assert len(anchors.flatten(1).unique(dim=0)) == 16  # B·K different states


def test_advantages_are_the_quasi_normed_z_scores():
    method = Neighbor(p=0.5)
    tree = rollout(method, MU)
    rewards = rewards_of(tree)
    for decisions in decide(method, tree, rewards):
        torch.testing.assert_close(decisions.adv, quasi_norm(z_score(rewards), 0.5)[decisions.prompt])


@pytest.mark.parametrize(
    ("start", "end", "allowed"), [(0.0, 0.5, range(4)), (0.5, 1.0, range(4, 8)), (0.25, 0.75, range(2, 6))]
)
def test_train_from_and_to_bound_the_transitions(start, end, allowed):
    method = Neighbor(train_from=start, train_to=end, num_train_steps=4)
    tree = rollout(method, MU)
    times = {tree.steps[k].t for k in allowed}
    (first, *_) = decide(method, tree, rewards_of(tree))
    assert {round(t, 5) for t in first.t.tolist()} == {round(t, 5) for t in times}


def test_scale_weighting_divides_by_step_length_and_spread():
    plain, scaled = Neighbor(**ALL, updates_per_rollout=1), Neighbor(**ALL, updates_per_rollout=1, weighting="scale")
    tree = rollout(plain, MU)
    (a,), (b,) = decide(plain, tree, rewards_of(tree)), decide(scaled, tree, rewards_of(tree))
    spread = (a.y - a.y.mean(1, keepdim=True)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(b.adv * ((a.t - a.s) * spread)[:, None], a.adv)


def test_x0_distances_compare_data():
    tree = rollout(Neighbor(), MU, prompts=1)
    (final, *_) = decide(Neighbor(distance="final_x0"), tree, rewards_of(tree))
    assert torch.equal(final.s, torch.zeros(4))
    assert torch.equal(final.y, tree.leaves[0].expand(4, *tree.leaves[0].shape))
    (own, *_) = decide(Neighbor(distance="step_x0"), tree, rewards_of(tree))
    step = next(s for s in tree.steps if abs(s.t - float(own.t[0])) < 1e-6)
    torch.testing.assert_close(own.y[0], step.x[0] - step.t * step.v[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 1},
        {"num_anchors": 13},
        {"num_train_steps": 9},
        {"sigma": 0.0},
        {"sigma": 1.1},
        {"p": 0.0},
        {"p": 2.1},
        {"updates_per_rollout": 3},
        {"temperature": "d"},
        {"temperature": 0.0},
        {"train_from": 0.6, "train_to": 0.5},
        {"sigmaa": 1},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Neighbor(**wrong)
