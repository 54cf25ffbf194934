"""Methods of other kinds than ratios of stored transitions learn the toy, each in under thirty lines."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from foreign import FOREIGN, Chained, ForwardProcess, PairsFromFile
from safetensors.torch import save_file
from toy import LATENT, ToyPolicy, copies_of, follow, rollout, updates

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
TARGET = torch.full(LATENT, 1.5)


def reward(leaves):
    return -(leaves - TARGET).square().flatten(2).mean(-1)


def final(method, mu):
    return float(reward(rollout(method, mu.detach(), seed=100, prompts=6).leaves).mean())


def train(method, make, iterations, lr=0.03):
    """Adam on mu; make(mu of what draws, n) gives an iteration's updates, and copies follow after it."""
    mu, copies = MU.clone().requires_grad_(), copies_of(method, MU)
    optimizer = torch.optim.Adam([mu], lr=lr)
    for n in range(iterations):
        for rows in make(copies[method.drawn_by] if method.drawn_by else mu.detach(), n):
            optimizer.zero_grad()
            loss, _ = method.loss(ToyPolicy(mu, MU, copies), rows)
            loss.mean().backward()
            optimizer.step()
        follow(method, copies, mu, n + 1)
    return mu.detach(), copies


def rolled_out(method):
    def make(mu, n):
        tree = rollout(method, mu, seed=n, prompts=6, iteration=n)
        return updates(method, tree, reward(tree.leaves), seed=n, iteration=n)

    return make


def test_a_forward_process_method_learns_and_its_lagging_copy_follows():
    method = ForwardProcess()
    mu, copies = train(method, rolled_out(method), 60)
    assert final(method, mu) > final(method, MU) * 3 / 4
    assert 0 < (copies["old"] - mu).abs().max() < (MU - mu).abs().max()


def test_a_method_over_pairs_from_a_file_learns_which_arm_is_better(tmp_path):
    """Pairs of data about mu: the chosen ones are shifted towards the target, the rejected ones away from it."""
    generator = torch.Generator().manual_seed(0)
    arms = {"chosen": 1, "rejected": -1}
    spread = 0.5 * torch.randn(64, *LATENT, generator=generator)
    save_file({name: MU + spread + sign * 0.3 * (TARGET - MU) for name, sign in arms.items()}, tmp_path / "pairs.safetensors")
    method = PairsFromFile(pairs=str(tmp_path / "pairs.safetensors"))
    config = SimpleNamespace(method=method, seed=0, prompts=SimpleNamespace(per_iteration=16))
    source = method.source(SimpleNamespace(config=config, slots=range(16), conditioning=lambda numbers: None))
    mu, _ = train(method, lambda _, n: source.experience(n).updates, 60)
    assert (mu - TARGET).square().mean() < (MU - TARGET).square().mean() * 3 / 4
    accuracy = [method.loss(ToyPolicy(mu, MU), rows)[1]["accuracy"] for rows in source.experience(99).updates]
    assert accuracy[0] > 0.9


def test_a_method_whose_loss_chains_velocities_learns():
    method = Chained()
    mu, _ = train(method, rolled_out(method), 30)
    assert final(method, mu) > final(method, MU) / 2


def test_a_pair_is_never_split_into_two_micro_batches(tmp_path):
    method, generator = PairsFromFile(), torch.Generator().manual_seed(0)
    tree = method.rollout(None, lambda n: torch.randn(5, n, *LATENT, generator=generator), [], None)
    (rows,) = method.updates(tree, None, [generator] * 5, None)
    assert [len(part) for part in rows.split(4)] == [2, 2, 1] and [len(part) for part in rows.split(1)] == [1] * 5
    x = torch.cat([part.x for part in rows.split(4)])
    assert torch.equal(x, rows.x) and x.shape == (5, 2, *LATENT)


@pytest.mark.parametrize("method", FOREIGN)
def test_each_is_under_thirty_lines(method):
    lines = [line for line in inspect.getsource(method).splitlines() if line.strip()]
    assert len(lines) < 30, len(lines)
