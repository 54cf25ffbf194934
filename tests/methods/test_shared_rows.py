"""Successors of one state are one row: the same loss as with a row for each, at fewer forward-backwards."""

from dataclasses import fields

import pytest
import torch
from toy import LATENT, gradient, loss_at, rollout, some_rewards, updates

from neighbor_grpo.config import load_config
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.dance_grpo import DanceGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import FlowGRPOFast, MixGRPO
from neighbor_grpo.planning.plan import plan

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
ELSEWHERE = MU + 0.02 * torch.randn(LATENT, generator=torch.Generator().manual_seed(0))
METHODS = [
    MixGRPO(kl=0.1),
    MixGRPO(group_size=6, updates_per_rollout=1, strategy="random"),
    FlowGRPOFast(kl=0.1),
    FlowGRPO(),
    DanceGRPO(num_train_steps=None, kl=0.1),
    DanceGRPO(),
    BranchGRPO(),
    BranchGRPO(keep="extremes", splits=[0, 1, 2, 4], kl=0.1),
    BranchGRPO(mix=True, splits=[1, 3], branching=4),
]
CASES = [pytest.param(method, id=f"{method.name}-{n}") for n, method in enumerate(METHODS)]


def singles(rows):
    """A row for each transition, of weight one."""
    row, choice = rows.weight.nonzero().T
    one = {f.name: getattr(rows, f.name)[row] for f in fields(rows)}
    one |= {name: getattr(rows, name)[row, choice].unsqueeze(1) for name in ("y", "adv", "weight")}
    return type(rows)(**one | {"weight": torch.ones(len(row), 1)})


@pytest.mark.parametrize("method", CASES)
def test_the_loss_is_that_of_a_row_for_each_transition(method):
    """Away from the old policy, where the clip cuts; an optimizer step's mean is over transitions."""
    tree = rollout(method, MU)
    decided = updates(method, tree, some_rewards(tree))
    per_row = sum(int((d.weight > 0).sum()) for d in decided) / sum(map(len, decided))  # transitions
    cut = 0.0
    for d in decided:
        apart = singles(d)
        (ours, _), (theirs, figures) = loss_at(method, ELSEWHERE, d, MU), loss_at(method, ELSEWHERE, apart, MU)
        torch.testing.assert_close(per_row * ours.sum(), theirs.sum(), rtol=1e-5, atol=1e-5)
        if not isinstance(method, BranchGRPO):  # whose steps hold about as many transitions
            torch.testing.assert_close(ours.mean(), theirs.mean(), rtol=1e-5, atol=1e-6)
        share = len(apart) / len(d) / per_row
        torch.testing.assert_close(gradient(method, MU, d), share * gradient(method, MU, apart), rtol=1e-4, atol=1e-7)
        cut = max(cut, float(figures["ratio/clipped"]))
    assert cut > 0.2


@pytest.mark.parametrize("method", CASES)
def test_every_trained_transition_is_one_choice_of_one_row(method):
    tree = rollout(method, MU)
    rows = [row for d in updates(method, tree, some_rewards(tree)) for row in singles(d).split(1)]
    seen = {(int(r.prompt), *r.y.flatten().tolist()) for r in rows}
    assert len(seen) == len(rows)
    if getattr(method, "keep", "all") == "all" and getattr(method, "num_train_steps", None) is None:
        assert seen == {
            (p, *y.flatten().tolist()) for step in tree.steps if step.std for p, states in enumerate(step.y) for y in states
        }


@pytest.mark.parametrize("method", CASES)
def test_a_row_starts_where_its_choices_came_from(method):
    tree = rollout(method, MU)
    for d in updates(method, tree, some_rewards(tree)):
        for r in d.split(1):
            step = next(step for step in tree.steps if step.t == pytest.approx(float(r.t)))
            for y in r.y[0]:  # those that repeat another, too
                m = int((step.y[int(r.prompt)] == y).flatten(1).all(1).nonzero()[0])
                assert torch.equal(step.x[int(r.prompt), step.parent[m]], r.x[0])


@pytest.mark.parametrize(
    ("method", "nfe"),
    [
        ("name: flow_grpo_fast", 2 * (1 + 12) / 24),
        ("name: mix_grpo", 4 * (1 + 3 * 3) / 12),
        ("name: mix_grpo, num_train_steps: 2", 2),  # drawn for each sample: a number of rows that depends on no draw
        ("name: dance_grpo", 14),
        ("name: dance_grpo, num_train_steps: null", 3 * (1 + 4 * 23) / 12),
        ("name: flow_grpo", 9),
        ("name: branch_grpo", (202 - 15) / 16),
        ("name: branch_grpo, mix: true", (1 + 2 + 4 + 8) / 16),
    ],
)
def test_the_plan_counts_rows(method, nfe):
    assert plan(load_config(None, [f"method={{{method}}}", "iterations=3"])).nfe_theta == pytest.approx(nfe)
