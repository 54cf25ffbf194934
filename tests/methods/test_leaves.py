"""Rollouts that keep the leaves alone: where a group parts, what it costs, and at which (t, eps) its samples are trained."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from toy import LATENT, SCALE, grid, rollout, some_rewards, updates

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.awm import AWM
from neighbor_grpo.methods.dgpo import DGPO
from neighbor_grpo.methods.nft import NFT
from neighbor_grpo.methods.v_grpo import VGRPO

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
EARLY = {"parting": "path", "num_steps": 8, "group_size": 12, "num_train_steps": 2}


# ---------------------------------------------------------------- where a group parts


def test_a_path_that_parts_costs_less_and_counts_in_full():
    """k + 1 forwards for all and N - k - 1 for each, k = 0, 1, 2 equally often and from the seed."""
    method = NFT(**EARLY)
    assert method.partings == range(3) and NFT(**EARLY, part_to=1.0).partings == range(7)  # the last transition never parts
    trees = [rollout(method, MU, iteration=n) for n in range(60)]
    counts = Counter(tree.evaluations for tree in trees)
    assert counts.keys() == {k + 1 + 12 * (7 - k) for k in range(3)} and min(counts.values()) > 8
    assert {tree.nominal_evaluations for tree in trees} == {12 * 8}
    assert all(tree.times == tuple(grid(method)) for tree in trees)
    assert torch.equal(rollout(method, MU, iteration=7).leaves, trees[7].leaves)


def test_the_later_a_path_parts_the_more_alike_are_its_samples():
    """An equal share of the noise is drawn anew: Eq. 7 at every place."""
    spread = []
    for k in range(7):
        method = NFT(**EARLY, sde="neighbor", eta=0.5, **{"part_from": k / 8, "part_to": (k + 1) / 8})
        spread.append(float(rollout(method, MU, prompts=50).leaves.var(1).mean()))
    assert all(earlier > later for earlier, later in pairwise(spread)) and spread[-1] < spread[0] / 1.5, spread


@pytest.mark.parametrize(
    "parting",
    [{"parting": "neighbours"}, {"parting": "path", "part_to": 1.0}, {"parting": "path", "sde": "neighbor", "eta": 0.5}],
)
def test_every_parting_keeps_the_marginal(parting):
    method = NFT(**parting, num_steps=60, group_size=2)
    leaves = torch.cat([rollout(method, MU, seed=n, prompts=2000, iteration=n).leaves[:, 0] for n in range(3)])
    torch.testing.assert_close(leaves.mean(0), MU, atol=0.04, rtol=0)
    torch.testing.assert_close(leaves.var(0), torch.full(LATENT, SCALE**2), atol=0, rtol=0.15)


def test_neighbours_correlate_as_eq_7_says():
    leaves = rollout(NFT(parting="neighbours", sigma=0.6, group_size=2), MU, prompts=4000).leaves - MU
    correlation = (leaves[:, 0] * leaves[:, 1]).mean() / leaves.square().mean()  # the flow is linear here
    assert float(correlation) == pytest.approx(1 - 0.6**2, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ("sigma: 0.2", "sigma has no effect with parting=noise"),
        ("parting: neighbours, part_from: 0.2", "part_from has no effect"),
        ("parting: path, sigma: 0.2", "set parting=neighbours"),
        ("eta: 0.5", "set parting=path"),
        ("parting: path, part_from: 0.95", "further apart"),
        ("parting: path, part_from: 0.5, part_to: 0.4", "further apart"),
        ("parting: path, sde: cps, eta: 1.5", "at most 1"),
        ("parting: late", "choose noise, neighbours or path"),
        ("num_train_steps: 11", r"num_train_steps \(T = 11\)"),
        ("train_from: 0.8, num_train_steps: 3", "the 2 of num_steps"),
        ("updates_per_rollout: 7", "must divide group_size times num_train_steps"),
        ("decay: 3", "decay"),
        ("decay: 1.5", "decay"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, remedy):
    with pytest.raises(UserError, match=remedy) as caught:
        load_config(None, [f"method={{name: nft, {settings}}}"])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- at which (t, eps)


def drawn(method, seed=0):
    """Times and noises of one group, [G, T] and [G, T, *latent], whatever is laid out as a row."""
    tree = rollout(method, MU, prompts=1)
    (rows,) = updates(method, tree, some_rewards(tree), seed=seed)
    t, x, x0 = rows.t, rows.x, rows.x0
    if method.row == "group":
        t, x, x0 = (column.transpose(0, 1) for column in (t, x, x0))
    shape = (method.group_size, method.num_train_steps)
    t, x, x0 = (column.reshape(*shape, *column.shape[2:]) for column in (t, x, x0))
    torch.testing.assert_close(x0, tree.leaves[0][:, None].expand(x0.shape))
    return t, (x - (1 - t[..., None, None]) * x0) / t[..., None, None]


def places(method, t):
    """Of times in the method's grid; each is one of it exactly."""
    return torch.tensor(
        [[grid(method).index(next(g for g in grid(method) if abs(g - u) < 1e-6)) for u in row] for row in t.tolist()]
    )


def test_nft_draws_nine_of_ten_times_for_each_sample_with_noise_of_its_own():
    method = NFT()
    t, eps = drawn(method)
    found = places(method, t)
    assert all(len(set(row)) == 9 for row in found.tolist()) and len(found.unique()) == 10
    assert len({tuple(row) for row in found.tolist()}) > 20 and float(eps.std()) == pytest.approx(1, abs=0.05)
    assert float(eps.flatten(0, 1).std(0).min()) > 0.7


def test_awm_draws_one_time_in_each_of_its_strata_for_a_group():
    method = AWM()
    borders = [1, 2, 4, 6, 8, 10, 12]  # linspace(1, floor(0.9·14), 7), rounded down
    seen = [set() for _ in range(6)]
    for seed in range(30):
        found = places(method, drawn(method, seed)[0])
        assert (found == found[:1]).all()
        for stratum, place in zip(seen, found[0].tolist(), strict=True):
            stratum.add(place)
    assert seen == [set(range(a, b)) for a, b in pairwise(borders)]
    assert drawn(method)[1].std(0).min() > 0.4  # eps is each sample's own


@pytest.mark.parametrize("kind", [VGRPO, DGPO])
def test_what_a_group_shares_is_shared(kind):
    method = kind()
    for seed in range(5):
        t, eps = drawn(method, seed)
        found = places(method, t)
        assert (found == found[:1]).all()
        torch.testing.assert_close(eps, eps[:1].expand(eps.shape), atol=2e-4, rtol=0)
        assert float(eps[0].std(0).min()) > 0.1  # another at each time
        if kind is VGRPO:
            assert [place // 10 for place in found[0].tolist()] == [0, 1, 2, 3]
        else:
            assert len(set(found[0].tolist())) == 4 and max(found[0].tolist()) < 7
