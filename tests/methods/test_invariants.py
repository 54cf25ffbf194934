"""What every method must do, whatever it does (a method added to METHODS is tested by being there)."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from foreign import ForwardProcess
from toy import LATENT, SCALE, copies_of, follow, gradient, grid, loss_at, noise_of, rollout, some_rewards, updates, velocity

from neighbor_grpo.flow.solvers import euler
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods import METHODS
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.dance_grpo import DanceGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.gaussian import Gaussian
from neighbor_grpo.methods.leaves import Leaves
from neighbor_grpo.methods.mix_grpo import MixGRPO

VARIANTS = {
    "neighbor": [
        {"temperature": 1.0},
        {"distance": "final_x0"},
        {"distance": "step_x0"},
        {"weighting": "scale"},
        {"solver": "heun"},
        {"solver": "dpmpp_3m"},
        {"updates_per_rollout": 2},
        {"solver": "euler", "reference": "literal"},
        {"surrogate": "spo", "clip": 0.03},
    ],
    "neighbor_late": [
        {"sde": "neighbor", "eta": 0.3},
        {"sde": "cps", "eta": 0.5, "solver": "heun"},
        {"distance": "final_x0", "surrogate": "spo", "clip": 0.03},
        {"part_from": 0.0, "part_to": 0.1, "weighting": "none"},
    ],
    "fdfo": [{"num_steps": 6, "num_train_steps": 2, "churn_at": "start", "surrogate": "clip", "updates_per_rollout": 1}],
    "flow_grpo": [
        {"sde": "cps", "density": "distance"},
        {"kl": 0.01, "kl_std": "rate"},
        {"ratio": "guard"},
        {"ratio": "dppo", "weighting": "std", "sde": "neighbor"},
    ],
    "mix_grpo": [
        {"window": 14},
        {"strategy": "random"},
        {"strategy": "decay"},
        {"strategy": "exp_decay"},
        {"strategy": "frozen"},
    ],
    "branch_grpo": [
        {"fusion": "softmax"},
        {"keep": "best"},
        {"keep": "best_child", "split_noise": 4.0, "reward_std": "sample"},
        {"keep": "extremes"},
        {"prune_depths": [16, 17, 18], "slide_every": 1},
        {"mix": True},
        {"splits": [0], "branching": 16},
    ],
    "mix_grpo_flash": [{"tail_count": "points"}],
    "nft": [
        {"decay": 0, "kl": 0.0},
        {"beta": 0.1, "decay": 2, "times": "stratified", "shared": "times"},
        {"parting": "path", "part_from": 0.2, "part_to": 1.0, "solver": "heun"},
        {"decay": 0, "updates_per_rollout": 3, "advantage_std": "group"},
        {"decay": 0.9},
    ],
    "awm": [{"updates_per_rollout": 2, "clip": 0.1}, {"p": 1.0, "time_power": 0, "mu": 0.0, "clip": None}],
    "v_grpo": [
        {"parting": "neighbours", "sigma": 0.5},
        {"updates_per_rollout": 2, "clip": 1e-3, "kappa": 0.3, "kl": 0.01},
    ],
    "dgpo": [{"draw_after": None, "kl": 0.0}, {"draw_after": 3, "updates_per_rollout": 2}],
}
CASES = [
    pytest.param(METHODS[name](**variant), id=f"{name}-{variant}")
    for name in METHODS
    for variant in [{}, *VARIANTS.get(name, [])]
] + [pytest.param(ForwardProcess(), id="foreign")]  # another kind of rows, and a lagging copy
SDE_CASES = [case for case in CASES if isinstance(case.values[0], Gaussian)]
MU = torch.linspace(-1, 1, 12).reshape(LATENT)
STORED = [case for case in CASES if rollout(case.values[0], MU, prompts=1).steps]  # methods that keep transitions
OTHERS = [case for case in CASES if case not in STORED]  # methods that keep the finished latents alone


@pytest.mark.parametrize("method", CASES)
def test_a_group_has_as_many_leaves_as_it_says(method):
    assert rollout(method, MU).leaves.shape == (2, method.group_size, *LATENT)


@pytest.mark.parametrize("method", STORED)
def test_every_transition_starts_where_its_parents_ended(method):
    tree = rollout(method, MU)
    assert (tree.steps[0].t, tree.steps[-1].s) == (1.0, 0.0)
    assert torch.equal(tree.steps[0].x, tree.root)
    for before, after in pairwise(tree.steps):
        assert before.s == after.t and torch.equal(before.y, after.x)
    for step in tree.steps:
        assert torch.equal(step.v, velocity(MU, step.x, step.t))
        assert len(step.parent) == step.y.shape[1]


@pytest.mark.parametrize("method", OTHERS)
def test_what_is_not_kept_is_let_go(method):
    tree = rollout(method, MU)
    assert tree.leaves is tree.root and tree.leaves.untyped_storage().nbytes() == tree.leaves.nbytes


@pytest.mark.parametrize("method", CASES)
def test_evaluations_are_the_calls(method):
    """Counted by counting the rows that the velocity was asked for."""
    asked = []

    def counting(x, t):
        asked.append(x.shape[1])
        return velocity(MU, x, t)

    tree = method.rollout(counting, noise_of(torch.Generator().manual_seed(0), 2), grid(method), Iteration(30))
    assert tree.evaluations == sum(asked) <= tree.nominal_evaluations


@pytest.mark.parametrize("method", CASES)  # those without a ratio have no figure of one
def test_ratio_is_one_before_the_first_update(method):
    tree = rollout(method, MU)
    for decisions in updates(method, tree, some_rewards(tree)):
        for size in (1, 3, 1000):
            for rows in decisions.split(size)[:20]:
                assert loss_at(method, MU, rows)[1].get("max/ratio/log_max", 0.0) < 2e-6


@pytest.mark.parametrize("method", CASES)
def test_equal_rewards_give_no_gradient(method):
    tree = rollout(method, MU)
    for decisions in updates(method, tree, torch.full(tree.leaves.shape[:2], 0.37)):
        assert torch.equal(gradient(method, MU, decisions), torch.zeros(LATENT))


@pytest.mark.parametrize("method", CASES)
def test_rewards_of_the_other_sign_give_the_opposite_gradient(method):
    """Of the same transitions: with keep=best other leaves would be trained, so the advantages are turned, not the draw."""
    tree = rollout(method, MU)
    for decisions in updates(method, tree, some_rewards(tree)):
        turned = type(decisions)(**{**vars(decisions), "adv": -decisions.adv})
        up, down = gradient(method, MU, decisions), gradient(method, MU, turned)
        assert up.abs().max() > 0
        torch.testing.assert_close(up, -down, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", CASES)
def test_credit_is_odd_in_the_rewards(method):
    tree = rollout(method, MU)
    rewards = some_rewards(tree)
    torch.testing.assert_close(method.credit(tree, -rewards, -rewards), -method.credit(tree, rewards, rewards))


@pytest.mark.parametrize("method", CASES)
def test_a_sample_without_a_score_is_left_out_of_its_group(method):
    if method.group_size == 2:
        pytest.skip("what is left of a pair has nothing to be compared with")
    tree = rollout(method, MU)
    rewards = some_rewards(tree)
    rewards[0, 2] = float("nan")
    leaves = method.credit(tree, rewards, rewards)[:, -method.group_size :]
    others = [n for n in range(method.group_size) if n != 2]
    assert leaves[0, 2] == 0
    torch.testing.assert_close(leaves[0, others].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    changed = rewards.clone()
    changed[0, others] = 3 * rewards[0, others] + 1  # a z-score knows neither scale nor offset
    if getattr(method, "advantage_std", "group") == "group":
        torch.testing.assert_close(method.credit(tree, changed, changed)[0, -method.group_size :], leaves[0])
        assert float(leaves[0, others].std(correction=getattr(method, "ddof", 0))) == pytest.approx(1, abs=1e-5)
    for decisions in updates(method, tree, rewards):
        assert decisions.adv.isfinite().all() and gradient(method, MU, decisions).isfinite().all()


@pytest.mark.parametrize("method", CASES)
def test_gradient_does_not_depend_on_the_micro_batch(method):
    tree = rollout(method, MU)
    decisions = updates(method, tree, some_rewards(tree))[0]
    whole = gradient(method, MU, decisions)
    for size in (1, 7):
        torch.testing.assert_close(gradient(method, MU, decisions, size), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", CASES)
def test_a_group_does_not_depend_on_the_others(method):
    """Generators and noise of its own: the rows of a prompt are the same whether another is beside it or not."""

    def run(prompts):
        noises = [torch.Generator().manual_seed(7 + p) for p in prompts]
        tree = method.rollout(
            lambda x, t: velocity(MU, x, t),
            lambda n: torch.stack([torch.randn(n, *LATENT, generator=g) for g in noises]),
            grid(method),
            Iteration(0),
        )
        rewards = torch.stack([torch.randn(method.group_size, generator=torch.Generator().manual_seed(p)) for p in prompts])
        pool = torch.arange(6.0).reshape(2, 3)  # the same for both, as it is on every rank
        draws = [torch.Generator().manual_seed(20 + p) for p in prompts]
        return method.updates(tree, method.credit(tree, rewards, pool), draws, Iteration(0))

    for alone, beside in zip(run([1]), run([0, 1]), strict=True):
        for name in {field.name for field in fields(alone)} - {"prompt"}:
            torch.testing.assert_close(getattr(beside, name)[beside.prompt == 1], getattr(alone, name))


@pytest.mark.parametrize("method", CASES)
def test_the_same_seed_is_the_same_run_bit_for_bit(method):
    runs = []
    for _ in range(2):
        tree = rollout(method, MU)
        runs.append([gradient(method, MU, d) for d in updates(method, tree, some_rewards(tree))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("method", CASES)
def test_learns_a_target(method):
    """Reward -||x0 - target||^2 with Adam on mu: from the same noise, samples end up nearer by a thirtieth at least."""
    target, mu, copies = torch.full(LATENT, 1.5), MU.clone().requires_grad_(), copies_of(method, MU)
    optimizer = torch.optim.Adam([mu], lr=0.06)

    def rewards_of(tree):
        return -(tree.leaves - target).square().flatten(2).mean(-1)

    for n in range(60):  # five or ten, except where a bound of the ratio allows small steps only
        drawn_by = copies[method.drawn_by] if method.drawn_by else mu.detach()
        tree = rollout(method, drawn_by, seed=n, prompts=6, iteration=n)
        for decisions in updates(method, tree, rewards_of(tree), seed=n, iteration=n):
            optimizer.zero_grad()
            loss, _ = loss_at(method, mu, decisions, MU, copies)
            loss.mean().backward()
            optimizer.step()
        follow(method, copies, mu, n + 1)
        if n % 5 == 4:
            before, after = (rewards_of(rollout(method, at.detach(), seed=100, prompts=6)).mean() for at in (MU, mu))
            if after > before * 29 / 30:
                return
    pytest.fail(f"{after} is not better than {before} by a thirtieth")


@pytest.mark.parametrize("method", SDE_CASES)
def test_without_noise_every_transition_is_the_euler_step(method):
    """eta -> 0: the kernel itself is tested at 0 exactly, here the whole rollout."""
    still = type(method)(**{**vars(method), "eta": 1e-6, "num_steps": method.num_steps})
    for step in rollout(still, MU).steps:
        if "tail_solver" not in vars(method) or method.tail_solver == "euler" or step.std > 0:
            torch.testing.assert_close(step.y, euler(step.x, step.v, step.t, step.s)[:, step.parent], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_marginal_is_kept(name):
    """At t = 0 the samples have the data's mean and variance, N(mu, SCALE^2), as the grid gets fine."""
    wide = {"window": 99, "window_end": 1.0}
    few = {"group_size": 2}  # of independent noises, one is looked at
    more = wide if issubclass(METHODS[name], MixGRPO) else few if issubclass(METHODS[name], Leaves) else {}
    method = METHODS[name](num_steps=120, **more)
    leaves = rollout(method, MU, prompts=4000).leaves[:, 0]  # one of each tree: independent of each other
    torch.testing.assert_close(leaves.mean(0), MU, atol=0.04, rtol=0)
    torch.testing.assert_close(leaves.var(0), torch.full(LATENT, SCALE**2), atol=0, rtol=0.15)


def test_a_tree_without_further_splits_is_credited_like_dance():
    branch, dance = BranchGRPO(splits=[0], branching=12, group_size=12, num_steps=25), DanceGRPO()
    ours, theirs = rollout(branch, MU), rollout(dance, MU)
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        assert torch.equal(a.y, b.y) and a.std == b.std  # the same lines
    rewards = some_rewards(ours)
    credit = branch.credit(ours, rewards, rewards).unflatten(1, (25, 12))
    expected = dance.credit(theirs, rewards, rewards)
    for k in range(25):
        torch.testing.assert_close(credit[:, k], expected)


def test_mix_with_the_window_over_all_is_the_rollout_of_flow():
    """From the same noise: Flow's lines start apart, so both are given one."""
    flow, mix = FlowGRPO(group_size=12, num_steps=8), MixGRPO(num_steps=8, window=7)

    def one_root():
        generator = torch.Generator().manual_seed(2)
        root, first = torch.randn(2, 1, *LATENT, generator=generator), [True]

        def noise(n):
            if first.pop() if first else False:
                return root.expand(-1, n, *LATENT)
            return torch.randn(2, n, *LATENT, generator=generator)

        return noise

    lines, window = (m.rollout(lambda x, t: velocity(MU, x, t), one_root(), grid(m), Iteration(0)) for m in (flow, mix))
    for a, b in zip(lines.steps, window.steps, strict=True):
        assert a.std == b.std
        torch.testing.assert_close(a.y, b.y)
