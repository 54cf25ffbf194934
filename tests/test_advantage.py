import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neighbor_grpo.methods.advantage import combine, quasi_norm, z_score

groups = st.lists(st.floats(-100, 100).map(lambda r: round(r, 3)), min_size=3, max_size=12)


@given(groups)
def test_z_score_has_mean_zero_and_population_std_one(rewards):
    adv = z_score(torch.tensor([rewards], dtype=torch.float64))
    if max(rewards) - min(rewards) < 0.05:
        return
    assert float(adv.mean()) == pytest.approx(0, abs=1e-5)
    assert float(adv.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_equal_rewards_have_no_advantage_whatever_their_float_noise():
    noisy = 0.3 + torch.tensor([[0.0, 1e-8, -1e-8, 3e-8]], dtype=torch.float64)
    assert torch.equal(z_score(noisy), torch.zeros(1, 4))
    assert torch.equal(quasi_norm(z_score(torch.full((2, 4), 5.0)), 0.8), torch.zeros(2, 4))
    assert z_score(torch.tensor([[1e-4, 2e-4, 3e-4]])).abs().max() > 1  # small rewards that do differ


@given(groups, st.sampled_from([0.3, 0.8, 1.0, 2.0]))
def test_quasi_norm_against_numpy(adv, p):
    a = np.array(adv)
    if not a.any():
        return
    expected = a / (np.abs(a) ** p).sum() ** (1 / p)
    np.testing.assert_allclose(quasi_norm(torch.tensor([adv], dtype=torch.float64), p)[0], expected, rtol=1e-6, atol=1e-9)


def test_quasi_norm_two_is_grpo_up_to_the_root_of_the_group():
    adv = z_score(torch.tensor([[1.0, 2.0, 4.0, 9.0]]))
    torch.testing.assert_close(quasi_norm(adv, 2.0) * 2, adv)


def test_small_p_weighs_one_winner_above_a_flat_group():
    rewards = torch.tensor([[0.0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 1]])
    winner, flat = quasi_norm(z_score(rewards), 0.5).square().sum(-1)
    assert winner > 2 * flat


REWARDS = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]], [[10.0, 10.0, 40.0], [5.0, 4.0, 3.0]]])  # [2, 2, 3]


def test_combine_sums_advantages_with_weights():
    got = combine(lambda r, pool: z_score(r), REWARDS, REWARDS, torch.tensor([0.5, 2.0]), "advantages")
    torch.testing.assert_close(got, 0.5 * z_score(REWARDS[0]) + 2.0 * z_score(REWARDS[1]))


def test_combine_credits_the_weighted_sum_of_rewards():
    got = combine(lambda r, pool: z_score(r), REWARDS, REWARDS, torch.tensor([0.5, 2.0]), "rewards")
    torch.testing.assert_close(got, z_score(0.5 * REWARDS[0] + 2.0 * REWARDS[1]))


@pytest.mark.parametrize("over", ["advantages", "rewards"])
def test_combine_hands_every_rank_the_same_pool(over):
    """A rank with the second group alone has that group's advantages of the whole."""
    weights = torch.tensor([0.5, 2.0])
    whole = combine(z_score, REWARDS, REWARDS, weights, over)
    torch.testing.assert_close(combine(z_score, REWARDS[:, 1:], REWARDS, weights, over), whole[1:])


def test_with_a_pool_the_std_is_that_of_all_its_rewards():
    """Flow-GRPO: 0 ... 3 and 10 ... 13 by hand, and a flat group stays at zero."""
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]])
    std = np.std([0, 1, 2, 3, 10, 11, 12, 13])
    torch.testing.assert_close(z_score(rewards, rewards), (rewards - rewards.mean(1, keepdim=True)) / std)
    flat = torch.tensor([[1.0, 1.0], [0.0, 4.0]])
    assert torch.equal(z_score(flat, flat)[0], torch.zeros(2))


def test_a_sample_without_a_score_is_left_out():
    nan = float("nan")
    adv = z_score(torch.tensor([[1.0, nan, 3.0, 8.0], [nan, nan, nan, 2.0], [nan, nan, nan, nan]]))
    torch.testing.assert_close(adv[0, [0, 2, 3]], z_score(torch.tensor([[1.0, 3.0, 8.0]]))[0])
    assert adv[0, 1] == 0 and torch.equal(adv[1:], torch.zeros(2, 4))
    pool = torch.tensor([[1.0, nan, 3.0, 8.0], [2.0, 2.0, 2.0, nan]])
    expected = (1.0 - 4.0) / np.std([1, 3, 8, 2, 2, 2])
    assert float(z_score(pool, pool)[0, 0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("over", ["advantages", "rewards"])
def test_a_sample_that_one_reward_could_not_score_counts_for_none(over):
    gap = REWARDS.clone()
    gap[1, 0, 2] = float("nan")
    weights = torch.tensor([0.5, 2.0])
    got = combine(lambda r, pool: z_score(r), gap, gap, weights, over)
    without = combine(lambda r, pool: z_score(r), REWARDS[..., :2], REWARDS[..., :2], weights, over)
    torch.testing.assert_close(got[0], torch.cat([without[0], torch.zeros(1)]))
    torch.testing.assert_close(got[1], combine(lambda r, pool: z_score(r), REWARDS, REWARDS, weights, over)[1])
