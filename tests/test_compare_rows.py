"""Rows of a comparison: costs, targets and the choice of a rate, by numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from comparisons import comparison

from neighbor_grpo.compare.rows import Nfe, Reached, Row, crossing
from neighbor_grpo.compare.runs import beyond, choose_rate
from neighbor_grpo.compare.settings import Bound, Rise, load_comparison
from neighbor_grpo.compare.tables import Target, final_table, target
from neighbor_grpo.config import load_config, write_values
from neighbor_grpo.errors import UserError
from neighbor_grpo.run import files
from neighbor_grpo.run.record import Record, write_record


def test_crossing_is_in_proportion_between_points():
    x, y = np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 6.0])
    assert crossing(x, y, 3.0) == 12.5
    assert crossing(x, y, 0.5) == 0.0
    assert crossing(x, y, 7.0) is None


def row(name, costs, measures, nfe=(8, 8, 1, 0)):
    return Row(name, "neighbor", 1e-4, [], 0, Nfe(*nfe), 1.0, costs, measures)


def test_the_cost_to_reach_is_that_of_the_mean_and_of_every_seed():
    costs = {"evaluations": np.array([[0.0, 100.0], [0.0, 100.0]])}
    one = row("a", costs, {"reward": np.array([[0.0, 1.0], [0.0, 3.0]])})
    reached = one.cost_to_reach(1.5, "evaluations")
    assert reached.by_mean == 75.0 and reached.by_seeds == [None, 50.0]
    assert one.measured_at(75.0) == {"reward": 1.5}


def test_forwards_of_the_reference_count_as_evaluations_and_are_0_where_they_are_not_recorded():
    lines = [
        {"nfe_old": 8, "nfe_nominal": 10, "nfe_theta": 2},
        {"nfe_old": 6, "nfe_nominal": 10, "nfe_theta": 2, "nfe_frozen": 3},
    ]
    assert Nfe.of(lines[:1]) == Nfe(8, 10, 2, 0) and Nfe.of(lines[:1]).evaluations == 8 + 3 * 2
    assert Nfe.of(lines) == Nfe(7, 10, 2, 1.5) and Nfe.of(lines).evaluations == 7 + 3 * 2 + 1.5


def test_the_column_of_frozen_forwards_is_there_where_a_method_needs_them():
    costs = {cost: np.array([[0.0, 1.0]]) for cost in ("iterations", "evaluations")}
    rows = [row(f"{n}", costs, {"reward": np.array([[0.0, 1.0]])}, (8, 8, 1, n)) for n in (0, 2)]
    without, both = final_table(rows[:1]), final_table(rows)
    assert "NFE_frozen" not in without[0]
    assert [line[both[0].index("NFE_frozen")] for line in both] == ["NFE_frozen", "", "0", "2"]
    assert {len(line) for line in both} == {len(without[0]) + 1}


def test_the_reward_to_reach_is_the_highest_of_the_best_named_run_within_the_bounds(tmp_path):
    def ended(name, reward, strict, bounds):
        measures = {"reward": np.array([[0.0, reward]]), "strict": np.array([[1.0, strict]])}
        return replace(row(name, {}, measures), bounds=bounds)

    plain, _ = load_comparison(comparison(tmp_path))

    def reached(reach, bounds=None):
        rows = [
            ended(name, reward, strict, bounds or {})
            for name, reward, strict in (("ours", 9.0, 1.0), ("hacks", 5.0, 0.2), ("keeps", 3.0, 0.9))
        ]
        return target(rows, plain.model_copy(update={"reach": reach, "bounds": bounds or {}}))

    strict = {"strict": Bound(least=0.8)}
    assert reached(["hacks", "keeps"]).reward == 5.0
    assert reached(["hacks", "keeps"], strict) == Target(3.0, "3, which keeps reaches within the bounds")
    assert reached("hacks", strict).reward == pytest.approx(1.25)  # strict falls from 1 to 0.2: a quarter of the way
    assert reached("ours").reward == reached(None).reward == reached(["not finished"]).reward == 9.0
    assert reached(4.5) == Target(4.5, "4.5")
    assert reached(Rise(times=1.5)).reward == 0.0  # all start at 0
    with pytest.raises(UserError, match="wider"):
        reached(None, {"strict": Bound(least=2.0)})


def test_a_run_counts_until_its_mean_leaves_the_bounds():
    """Reward 0, 1, 2, 3; the mean of the damage over seeds 0, 1, 3, 1: it leaves [., 2] half of the way to the third point."""
    measures = {
        "reward": np.array([[0.0, 1.0, 2.0, 3.0]] * 2),
        "damage": np.array([[0.0, 2.0, 2.0, 1.0], [0.0, 0.0, 4.0, 1.0]]),
    }
    one = replace(row("a", {"pictures": np.array([[0.0, 10, 20, 30]] * 2)}, measures), bounds={"damage": Bound(most=2.0)})
    assert one.kept == 2.5 and one.highest == 1.5
    assert one.cost_to_reach(0.5, "pictures").by_mean == 5.0 and one.cost_to_reach(1.6, "pictures").by_mean is None
    assert one.cost_to_reach(1.25, "pictures") == Reached(12.5, [12.5, 12.5])
    lost = replace(one, measures=measures | {"damage": np.array([[0.0, 1.0, math.nan, 0.0]] * 2)})
    assert lost.kept == 2 and lost.highest == 1.0
    free = replace(one, bounds={})
    assert free.kept == 4 and free.cost_to_reach(1.5, "pictures").by_mean == 15.0
    never = replace(one, bounds={"damage": Bound(least=1.0)})
    assert never.kept == 0 and never.cost_to_reach(0.0, "pictures").by_seeds == [None, None]


def test_bounds_are_numbers_or_relative_to_the_start():
    assert Bound(least=1.0, most=3.0).interval(9.0) == (1.0, 3.0)
    assert Bound(fall=0.5).interval(2.0) == (1.5, math.inf) and Bound(times=1.5).interval(2.0) == (-math.inf, 3.0)
    assert Bound(fall=0.5, least=1.8, times=1.5, most=2.5).interval(2.0) == (1.8, 2.5)


def tries(tmp_path, curves):
    """Runs by their rates, from points (reward, strict) after each iteration of 16 pictures."""
    runs = {}
    for lr, points in curves.items():
        runs[lr] = tmp_path / str(lr)
        runs[lr].mkdir()
        for n, (reward, strict) in enumerate(points):
            costs = {"nfe_old": 8, "nfe_nominal": 8, "nfe_theta": 1} if n else {}
            files.record(runs[lr], {"iteration": n, "eval/scenes": reward, "eval/scenes_strict": strict, **costs})
        config = load_config(None, ["reward=scenes", f"optimizer.lr={lr}"])
        (runs[lr] / "config.yaml").write_text(write_values(config.model_dump(mode="json")))
        write_record(runs[lr], Record({}, {}, ended="diverged" if lr == 3e-3 else "finished"))
    return runs


def test_a_rate_out_of_bounds_or_diverged_is_not_chosen(tmp_path):
    start = (0.05, 0.5)
    curves = {1e-4: (0.1, 0.5), 3e-4: (0.2, 0.48), 1e-3: (0.9, 0.1), 3e-3: (5.0, 0.5)}
    runs = tries(tmp_path, {lr: [start, end] for lr, end in curves.items()})
    plain, _ = load_comparison(comparison(tmp_path, tune={"lr": list(runs)}))

    def chosen(**bounds):
        return choose_rate(runs, plain.model_copy(update={"bounds": bounds}))

    assert chosen(scenes_strict=Bound(least=0.47)) == 3e-4
    assert chosen() == 1e-3
    assert chosen(scenes_strict=Bound(fall=0.0, least=0.9)) == 1e-4


def test_by_reach_the_first_to_reach_within_the_bounds_is_chosen_even_if_it_falls_later(tmp_path):
    runs = tries(tmp_path, {
        1e-4: [(0.0, 0.5), (0.1, 0.5), (0.2, 0.5), (0.3, 0.5)],  # at 1.5 of three iterations
        2e-4: [(0.0, 0.5), (0.2, 0.5), (0.1, 0.4), (0.05, 0.2)],  # at 0.75, and falls
        4e-4: [(0.0, 0.5), (0.3, 0.1), (0.4, 0.1), (0.5, 0.1)],  # first, but out of bounds
    })  # fmt: skip
    plain, _ = load_comparison(comparison(tmp_path, tune={"lr": list(runs), "by": "reach"}, reach=0.15))
    assert choose_rate(runs, plain.model_copy(update={"bounds": {"scenes_strict": Bound(fall=0.05)}})) == 2e-4
    assert choose_rate(runs, plain) == 4e-4
    nowhere = plain.model_copy(update={"reach": 9.0, "bounds": {"scenes_strict": Bound(fall=0.05)}})
    assert choose_rate(runs, nowhere) == 1e-4  # the highest within the bounds


def test_a_rise_is_relative_to_the_start(tmp_path):
    runs = tries(tmp_path, {1e-4: [(0.1, 0.5), (0.16, 0.5)], 2e-4: [(0.2, 0.5), (0.29, 0.5)]})
    plain, _ = load_comparison(comparison(tmp_path, tune={"lr": list(runs), "by": "reach"}, reach={"times": 1.5}))
    assert choose_rate(runs, plain) == 1e-4  # the other one gets higher, but only 1.45 times its start
    measures = {"reward": np.array([[0.1, 0.2], [0.3, 0.4]])}
    assert target([row("a", {}, measures)], plain).reward == pytest.approx(0.3)


def test_the_grid_grows_where_the_best_is_its_end():
    assert beyond([1e-4, 3e-4, 1e-3], 1e-3) == [3.33e-3] and beyond([1e-4, 3e-4, 1e-3], 1e-4) == [3.33e-5]
    assert beyond([1e-4, 3e-4, 1e-3], 3e-4) == beyond([1e-4], 1e-4) == []
