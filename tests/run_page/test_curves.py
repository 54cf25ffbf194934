"""The numbers that a page draws are those of metrics.jsonl."""

import numpy as np
import pytest
from made_runs import line

from neighbor_grpo.run import curves


def test_a_long_curve_keeps_its_ends_and_every_extreme():
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_001)
    values[[1234, 7777]] = 50.0, -50.0
    lines = [{"iteration": n, "reward/a": float(v), "spread/a": float(abs(v))} for n, v in enumerate(values)]
    (drawn,) = curves.thinned(curves.charts(lines))[0]["lines"]
    assert len(drawn["x"]) < 1500 and drawn["x"] == sorted(set(drawn["x"]))
    assert drawn["x"][0] == 0 and drawn["x"][-1] == 10_000
    assert drawn["y"] == [float(f"{values[n]:.6g}") for n in drawn["x"]]  # each point is a recorded one
    assert max(drawn["y"]) == 50.0 and min(drawn["y"]) == -50.0
    for part in np.array_split(np.arange(10_001), 200):  # of other parts than those that the code makes
        inside = [y for x, y in zip(drawn["x"], drawn["y"], strict=True) if part[0] - 60 <= x <= part[-1] + 60]
        assert max(inside) >= float(f"{values[part].max():.6g}") and min(inside) <= float(f"{values[part].min():.6g}")
    assert max(drawn["high"]) == pytest.approx(100.0) and min(drawn["low"]) == pytest.approx(-100.0)


def test_a_short_curve_is_drawn_whole_and_gaps_stay():
    lines = [{"iteration": n, "loss": float("nan") if n % 7 == 3 else n / 3} for n in range(900)]
    assert curves.thinned(curves.charts(lines)) == curves.charts(lines)
    (drawn,) = curves.charts(lines)[0]["lines"]
    assert [n for n, y in zip(drawn["x"], drawn["y"], strict=True) if y is None] == list(range(3, 900, 7))
    long = curves.thinned(curves.charts(lines * 3))[0]["lines"][0]
    assert max(y for y in long["y"] if y is not None) == pytest.approx(898 / 3, rel=1e-5)  # 899 is a gap


def test_runs_share_panels_and_keep_their_own_points():
    first, second = [line(0, True), line(1), line(2, True)], [line(0, True), line(1)]
    both = curves.overlaid([curves.charts(first, "a", 0), curves.charts(second, "b", 1)])
    panels = {panel["title"]: panel["lines"] for panel in both}
    assert [(one["label"], one["tone"], one["x"]) for one in panels["scenes"]] == [
        ("a training", 0, [1, 2]), ("a evaluation", 0, [0, 2]), ("b training", 1, [1]), ("b evaluation", 1, [0])
    ]  # fmt: skip
    assert [one["label"] for one in panels["grad_norm"]] == ["a", "b"]


def test_measures_against_their_start_in_standard_deviations_and_per_cent():
    found = curves.against([line(0, True), line(5, True), line(10, True)], ["scenes"], ["diversity", "sharpness"])
    rewards, others = found
    assert rewards["lines"][0]["label"] == "scenes (trained)" and rewards["lines"][0]["y"] == [0, 2.5, 5]  # 0.05 / 0.02
    assert {one["label"]: one["y"] for one in others["lines"]} == {
        "diversity (watched)": [0, -10, -20], "sharpness (watched)": [0, 0, 0]
    }  # fmt: skip
    assert curves.against([], ["scenes"], []) == []
