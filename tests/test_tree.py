import pytest
import torch

from neighbor_grpo.flow.sde import dance_sde
from neighbor_grpo.flow.solvers import SOLVERS
from neighbor_grpo.methods.rows import Decisions
from neighbor_grpo.methods.tree import Tree, diffuse, finish, grow, side_by_side, subsets
from neighbor_grpo.planning.footprint import Followed

TIMES = [1.0, 0.8, 0.5, 0.0]
GRID = [1.0, 0.9, 0.7, 0.6, 0.3, 0.1, 0.0]


def still(x, t):
    return torch.zeros_like(x)


def noise_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda n: torch.randn(2, n, 3, generator=generator)


def branched():
    noise = noise_of(0)
    kernel = lambda x, v, t, s: dance_sde(x, v, t, s, 0.5)  # noqa: E731
    tree = diffuse(Tree(noise(1)), still, TIMES[:3], kernel, noise, {0: 2, 1: 3})
    return grow(tree, still, TIMES[2:], "euler")


def test_siblings_lie_side_by_side_and_ancestors_lead_back_to_the_root():
    tree = branched()
    assert [step.parent.tolist() for step in tree.steps] == [[0, 0], [0, 0, 0, 1, 1, 1], list(range(6))]
    assert [row.tolist() for row in tree.ancestors()] == [[0, 0, 0, 1, 1, 1], list(range(6)), list(range(6))]


def test_successors_are_mean_plus_std_times_the_noise_drawn():
    """v = 0: mean = x - g^2·D/(2t)·x, std = g·sqrt(D); the noise is drawn again beside."""
    tree, noise = branched(), noise_of(0)
    x, z = noise(1), noise(2)
    torch.testing.assert_close(tree.steps[0].y, x * (1 - 0.25 * 0.2 / 2) + 0.5 * 0.2**0.5 * z)
    x, z = tree.steps[0].y, noise(6)
    mean = x * (1 - 0.25 * 0.3 / 1.6)
    torch.testing.assert_close(tree.steps[1].y, mean.repeat_interleave(3, 1) + 0.5 * 0.3**0.5 * z)


def test_evaluations_count_states_and_nominal_ones_transitions():
    tree = branched()
    assert tree.evaluations == 1 + 2 + 6
    assert tree.nominal_evaluations == 2 + 6 + 6
    shared = grow(Tree(noise_of(1)(1)), still, TIMES[:2], "euler")
    lines = diffuse(shared, still, TIMES[1:3], lambda x, v, t, s: dance_sde(x, v, t, s, 0.5), noise_of(2), {0: 4})
    assert (lines.evaluations, lines.nominal_evaluations) == (1 + 1, 4 + 4)  # the shared prefix counts for each of four
    assert grow(Tree(noise_of(1)(4)), still, TIMES, "heun").nominal_evaluations == 4 * 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_finished_counts_as_what_is_grown_and_keeps_the_leaves_alone(solver):
    """A shared prefix, a split and the rest, each part grown or finished: the same samples, counts and grid."""

    def drawn(prefix, rest):
        noise, kernel = noise_of(1), lambda x, v, t, s: dance_sde(x, v, t, s, 0.5)
        tree = prefix(Tree(noise(1)), lambda x, t: -x, GRID[:3], solver)
        return rest(diffuse(tree, lambda x, t: -x, GRID[2:4], kernel, noise, {0: 4}), lambda x, t: -x, GRID[3:], solver)

    whole = drawn(grow, grow)
    for tree in (drawn(grow, finish), drawn(finish, finish), side_by_side([drawn(finish, finish)] * 2)):
        assert torch.equal(tree.leaves[:2], whole.leaves)
        assert (tree.evaluations, tree.nominal_evaluations) == (whole.evaluations, whole.nominal_evaluations)
        assert tree.times == tuple(GRID) and not tree.steps and tree.leaves is tree.root


def test_a_finished_rollout_takes_as_much_memory_as_its_leaves():
    """32 transitions: grown, each keeps its state, its velocity and the next state; finished, none of them."""
    x, times = torch.empty(1, 4, 2**18, device="meta"), [1 - k / 32 for k in range(33)]
    peaks = {}
    for function in (grow, finish):
        with Followed(1) as seen:
            tree = function(Tree(x), still, times, "euler")
        peaks[function] = seen.peak
        assert tree.evaluations == tree.nominal_evaluations == 4 * 32
    assert peaks[grow] > 60 * x.nbytes and peaks[finish] < 9 * x.nbytes, peaks


def test_growing_along_one_time_changes_nothing():
    tree = branched()
    same = grow(tree, still, [0.0], "euler")
    assert same.evaluations == tree.evaluations and len(same.steps) == len(tree.steps)
    assert torch.equal(same.leaves, tree.leaves)


def test_rows_stack_and_split():
    x = torch.arange(6.0).view(2, 3)
    decisions = Decisions.cat(
        [
            Decisions.row(prompt=k, t=0.9, s=0.5, std=0.1, x=x[k], v_old=2 * x[k], y=x[k : k + 1], adv=torch.tensor([float(k)]))
            for k in (1, 0)
        ]
    )
    assert decisions.t.tolist() == [torch.tensor(0.9).item()] * 2 and decisions.prompt.tolist() == [1, 0]
    assert decisions.y.shape == (2, 1, 3) and decisions.adv.tolist() == [[1.0], [0.0]]
    first, second = decisions.split(1)
    assert torch.equal(second.x[0], x[0]) and torch.equal(first.v_old[0], 2 * x[1])


def test_subsets_are_without_replacement_and_each_groups_own():
    drawn = subsets([torch.Generator().manual_seed(0)] * 50, 6, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist()) and drawn.max() == 5
    generators = [torch.Generator().manual_seed(n) for n in range(3)]
    alone = subsets([torch.Generator().manual_seed(2)], 6, 4)
    assert torch.equal(subsets(generators, 6, 4)[2], alone[0])
