"""Rows of a comparison: costs, targets and the choice of a rate, by numbers."""

import numpy as np
from comparisons import comparison

from neighbor_grpo.compare.rows import Nfe, Row, crossing
from neighbor_grpo.compare.runs import choose_rate
from neighbor_grpo.compare.settings import Tune, load_comparison
from neighbor_grpo.compare.tables import Target, final_table, target
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


def test_the_reward_to_reach_is_that_of_the_best_named_run_within_the_bounds(tmp_path):
    def ended(name, reward, strict):
        return row(name, {}, {"reward": np.array([[0.0, reward]]), "strict": np.array([[1.0, strict]])})

    rows = [ended("ours", 9.0, 1.0), ended("hacks", 5.0, 0.2), ended("holds", 3.0, 0.9)]
    plain, _ = load_comparison(comparison(tmp_path))
    tune = Tune(lr=[1e-4], within={"strict": (0.8, None)})

    def reached(reach, **more):
        return target(rows, plain.model_copy(update={"reach": reach, **more}))

    assert reached(["hacks", "holds"]).reward == 5.0
    assert reached(["hacks", "holds"], tune=tune) == Target(3.0, "3, where holds ends")
    assert reached("hacks", tune=tune).reward == 5.0  # the only one named counts also outside the bounds
    assert reached("ours").reward == reached(None).reward == reached(["not finished"]).reward == 9.0
    assert reached(4.5) == Target(4.5, "4.5")


def test_a_rate_out_of_bounds_or_diverged_is_not_chosen(tmp_path):
    runs = {}
    for lr, reward, strict in ((1e-4, 0.1, 0.5), (3e-4, 0.2, 0.48), (1e-3, 0.9, 0.1), (3e-3, 5.0, 0.5)):
        runs[lr] = tmp_path / str(lr)
        runs[lr].mkdir()
        files.record(runs[lr], {"iteration": 1, "eval/scenes": reward, "eval/scenes_strict": strict})
        (runs[lr] / "config.yaml").touch()
        write_record(runs[lr], Record({}, {}, ended="diverged" if lr == 3e-3 else "finished"))
    bounded = Tune(lr=list(runs), within={"scenes_strict": [0.47, None]})
    assert choose_rate(runs, {"scenes": 1.0}, bounded) == 3e-4
    assert choose_rate(runs, {"scenes": 1.0}, Tune(lr=list(runs))) == 1e-3
    assert choose_rate(runs, {"scenes": 1.0}, Tune(lr=list(runs), within={"scenes_strict": [0.9, None]})) == 1e-4
