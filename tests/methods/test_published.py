"""What the authors' code computes where it differs from their formulas: the numbers of both, computed here by other means."""

import math
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import LATENT, grid, loss_at, rollout, some_rewards, updates, velocity

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import combine, z_score
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import MixGRPO, MixGRPOFlash, MixGRPOFlashStar

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
ELSEWHERE = MU + 0.05 * torch.randn(LATENT, generator=torch.Generator().manual_seed(0))


def one_step(**settings):
    """A method and the rows of its one optimizer step, every one a transition of its own."""
    method = FlowGRPO(group_size=4, num_steps=6, updates_per_rollout=1, clip=0.9, **settings)
    tree = rollout(method, MU, prompts=1)
    return method, updates(method, tree, some_rewards(tree))[0].split(1)


# ---------------------------------------------------------------- Flow-CPS: log-probability without 1 / (2·std^2)


@pytest.mark.parametrize("density", ["gaussian", "distance"])
def test_the_log_ratio_of_cps(density):
    """By numpy: x0 and noise predicted, sigma = s·sin(eta·pi/2), mean = (1 - s)·x0 + sqrt(s^2 - sigma^2)·noise."""
    method, rows = one_step(sde="cps", eta=0.8, density=density)
    for row in rows:
        t, s, x, y = float(row.t), float(row.s), row.x[0].double().numpy(), row.y[0, 0].double().numpy()
        sigma = s * math.sin(0.8 * math.pi / 2)
        squares = []
        for mu in (ELSEWHERE, MU):
            v = velocity(mu.double(), torch.from_numpy(x), t).numpy()
            mean = (x - t * v) * (1 - s) + (x + v * (1 - t)) * math.sqrt(s**2 - sigma**2)
            squares.append(np.square(y - mean).mean())
        scale = 1 if density == "distance" else 1 / (2 * sigma**2)
        expected = -float(row.adv) * math.exp(scale * (squares[1] - squares[0]))
        assert float(loss_at(method, ELSEWHERE, row)[0]) == pytest.approx(expected, rel=1e-4)


def test_a_density_without_effect_is_refused():
    with pytest.raises(ValidationError, match="ratio=guard"):
        FlowGRPO(density="distance", ratio="guard")


# ---------------------------------------------------------------- Flow-GRPO: the divergence by the rate, without the step


@pytest.mark.parametrize(("kl_std", "power"), [("rate", 0), ("transition", 1)])
def test_the_divergence_by_the_rate_and_by_the_transition(kl_std, power):
    """By numpy: Flow-GRPO's mean, and |mean - mean_ref|^2 / (2·sigma^2), sigma = a·sqrt(t / (1 - t)), over (t - s)^power."""
    held, rows = one_step(kl=0.04, kl_std=kl_std)
    times = grid(held)
    for row in rows:
        t, s, x = float(row.t), float(row.s), row.x[0].double().numpy()
        sigma = math.sqrt(t / (1 - (times[1] if t == 1 else t))) * 0.7
        means = []
        for mu in (ELSEWHERE, MU):
            v = velocity(mu.double(), torch.from_numpy(x), t).numpy()
            means.append(x * (1 - sigma**2 / (2 * t) * (t - s)) - v * (1 + sigma**2 * (1 - t) / (2 * t)) * (t - s))
        expected = np.square(means[0] - means[1]).mean() / (2 * sigma**2 * (t - s) ** power)
        assert float(loss_at(held, ELSEWHERE, row, MU)[1]["kl"]) == pytest.approx(expected, rel=1e-4)


def test_a_kernel_without_a_rate_is_refused():
    for sde in ("cps", "neighbor", "churn"):
        with pytest.raises(ValidationError, match="kl_std=transition"):
            FlowGRPO(sde=sde, kl_std="rate", kl=0.04)


# ---------------------------------------------------------------- DanceGRPO, MixGRPO, BranchGRPO: the sample std


@pytest.mark.parametrize(("ddof", "std"), [(0, statistics.pstdev), (1, statistics.stdev)])
def test_population_and_sample_std(ddof, std):
    rewards, gap = [1.0, 2.0, 4.0, 9.0], float("nan")
    expected = torch.tensor([(r - 4.0) / std(rewards) for r in rewards])
    torch.testing.assert_close(z_score(torch.tensor([rewards]), ddof=ddof)[0], expected)
    torch.testing.assert_close(z_score(torch.tensor([[*rewards, gap]]), ddof=ddof)[0, :4], expected)
    pool = torch.tensor([rewards, [3.0, 3.0, 5.0, gap]])
    pooled = z_score(pool[:1], pool, ddof)
    torch.testing.assert_close(pooled[0], torch.tensor([(r - 4.0) / std([*rewards, 3.0, 3.0, 5.0]) for r in rewards]))
    assert torch.equal(z_score(torch.tensor([[2.0, gap, gap]]), ddof=ddof), torch.zeros(1, 3))  # one has no spread


def test_the_first_split_of_branch_is_smaller_by_the_root_of_two():
    """Two states at the first split: ±1 by the population std, ±1/sqrt(2) by the sample std; the leaves by sqrt(15/16)."""
    advantages = {}
    for reward_std in ("population", "sample"):
        method = BranchGRPO(reward_std=reward_std)
        tree = rollout(method, MU, prompts=1)
        rewards = some_rewards(tree)
        advantages[reward_std] = method.credit(tree, rewards, rewards)[0]
    ratio = (advantages["sample"] / advantages["population"]).tolist()
    assert ratio[0] == pytest.approx(1 / math.sqrt(2), rel=1e-5)
    assert ratio[-1] == pytest.approx(math.sqrt(15 / 16), rel=1e-5)


# ---------------------------------------------------------------- MixGRPO: weights of rewards that sum to one


def test_weights_are_divided_by_their_sum_before_advantages_are_clipped():
    """Three rewards that agree on the best of twelve: 3·3.3 is beyond the clip of 5, the mean of 3.3 is not."""
    rewards = torch.zeros(3, 1, 12)
    rewards[:, 0, 0] = torch.tensor([1.0, 2.0, 5.0])
    weights = torch.tensor([1.0, 0.5, 1.5])
    z = (1 - 1 / 12) / statistics.pstdev([1.0] + [0.0] * 11)
    for over, expected in (("advantages", 3 * z), ("mean_advantages", z)):
        adv = combine(lambda values, pool: z_score(values), rewards, rewards, weights, over)
        assert float(adv[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert 3 * z > FlowGRPO().adv_clip > z


def test_weights_without_a_positive_sum_have_no_mean():
    with pytest.raises(UserError, match=r"reward\.aggregate=advantages"):
        load_config(None, ["reward={train: {a: 1, b: -1}, aggregate: mean_advantages}"])


# ---------------------------------------------------------------- BranchGRPO: depths, widths, noise


def lines_after(method, tree):
    """(transition, leaf) of what is trained after the last split; a leaf's chain does not divide there."""
    found = set()
    for rows in updates(method, tree, torch.arange(float(method.group_size))[None]):
        for row, choice in rows.weight.nonzero().tolist():
            k = next(k for k, step in enumerate(tree.steps) if step.t == pytest.approx(float(rows.t[row])))
            if k > method.splits[-1]:
                found.add((k, int((tree.steps[k].y[0] == rows.y[row, choice]).flatten(1).all(1).nonzero()[0])))
    return found


def test_the_authors_count_depths_from_one():
    """Their depth of a transition is that of its successor; "15,16,17,18" leaves out what is 14 to 17 here."""
    tree = rollout(method := BranchGRPO(prune_depths=[14, 15, 16, 17]), MU, prompts=1)
    depths, depth = {}, 0
    for k, step in enumerate(tree.steps):  # of the successors, the root has depth 0
        assert torch.equal(step.x, tree.steps[k - 1].y if k else tree.root)
        depths[k] = depth = depth + 1
    assert method.trained(0) == {k for k in depths if depths[k] not in (15, 16, 17, 18)} - {19}


def test_width_mode_1_keeps_the_first_half_of_every_chain():
    """Mode 1 sorts the transitions of a chain by their advantage and keeps the first half; they all have the same one.

    So the order in time decides, Python's sort being stable: of the ten after the last split the first five remain.
    """
    tree = rollout(BranchGRPO(), MU, prompts=1)
    chain = sorted(range(10, 20), key=lambda k: 0.7, reverse=True)  # one advantage for all
    kept = set(chain[: max(1, int(len(chain) * 0.5))])
    method = BranchGRPO(prune_depths=[15, 16, 17, 18])
    assert lines_after(method, tree) == {(k, leaf) for k in kept for leaf in range(16)}


@pytest.mark.parametrize(
    ("keep", "leaves"),
    [("best", range(8, 16)), ("best_child", range(1, 16, 2)), ("extremes", [0, 1, 2, 3, 12, 13, 14, 15])],
)
def test_what_the_widths_keep(keep, leaves):
    """Rewards 0 to 15 in the order of the leaves; siblings lie side by side."""
    method = BranchGRPO(keep=keep)
    assert lines_after(method, rollout(method, MU, prompts=1)) == {(k, leaf) for k in range(10, 19) for leaf in leaves}


def test_noise_at_a_split_is_scored_as_if_it_were_the_kernels():
    plain, wide = (rollout(BranchGRPO(split_noise=size), MU, prompts=1) for size in (1.0, 4.0))
    kernel = BranchGRPO().kernel
    for k, (a, b) in enumerate(zip(plain.steps, wide.steps, strict=True)):
        assert a.std == b.std
        if a.std:
            z = [(step.y - kernel(step.x, step.v, step.t, step.s)[0][:, step.parent]) / step.std for step in (a, b)]
            torch.testing.assert_close(z[1], (4.0 if k in (0, 3, 6, 9) else 1.0) * z[0], atol=2e-3, rtol=1e-3)


# ---------------------------------------------------------------- MixGRPO-Flash: the tail


@pytest.mark.parametrize(
    ("method", "r"), [(MixGRPOFlash(tail_count="points"), 0.4), (MixGRPOFlashStar(tail_count="points"), 0.2)]
)
def test_the_tail_by_points(method, r):
    """Theirs: int((25 - last)·r) points from the window's end to data, `last` its last transition; here at least two."""
    for place in range(method.last_place + 1):
        last = place + method.window - 1
        points = int(max((25 - last) * r, 1))
        assert method.after(last + 1) == max(points - 1, 1)
    tree = rollout(method, MU)
    tail = [step.t for step in tree.steps[4:]]
    assert len(tail) == {0.4: 7, 0.2: 3}[r] and tree.steps[-1].s == 0.0
    places = np.linspace(4, 25, len(tail) + 1)[:-1]  # evenly spaced on the grid of the rollout
    assert tail == pytest.approx(np.interp(places, range(26), grid(method)).tolist())


def test_a_whole_tail_is_whole_by_either_count():
    for count in ("transitions", "points"):
        assert all(MixGRPO(tail_count=count).after(end) == 25 - end for end in range(4, 25))


# ---------------------------------------------------------------- the presets


PUBLISHED = {
    "flow_grpo": {"kl": 0.04, "kl_std": "rate"},
    "flow_cps": {"sde": "cps", "eta": 0.8, "window": 3, "clip": 1e-5, "density": "distance"},
    "dance_grpo": {"reward_std": "sample"},
    "mix_grpo": {"reward_std": "sample"},
    "mix_grpo_flash": {"reward_std": "sample", "tail_count": "points", "dwell": 20},
    "mix_grpo_flash_star": {"reward_std": "sample", "tail_count": "points"},
    "branch_grpo": {"reward_std": "sample", "split_noise": 4.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_presets_of_the_papers_are_what_was_published(name):
    config = load_config(presets=[name])
    assert {key: getattr(config.method, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert config.reward.aggregate == ("mean_advantages" if name.startswith("mix") else "advantages")


def test_flow_cps_stands_in_the_first_half():
    method = load_config(presets=["flow_cps"]).method
    assert Counter(method.place(Iteration(n)) for n in range(300)).keys() == {0, 1, 2}
    assert load_config(presets=["flux_dev/flow_cps"]).method.last_place == 0  # three of six
