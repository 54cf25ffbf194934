"""The drawings of a comparison's page, by numbers."""

from dataclasses import replace

import numpy as np
import pytest
from test_compare_rows import row

from neighbor_grpo.compare.curves import REFERENCE, drawings, panels
from neighbor_grpo.compare.settings import Bound

COSTS = {"evaluations": np.array([[0.0, 10.0, 20.0], [0.0, 30.0, 40.0]])}
MEASURES = {
    "reward": np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 6.0]]),
    "strict": np.array([[1.0, 0.9, 0.4], [1.0, 0.7, 0.2]]),
    "sharp": np.array([[5.0, 5.0, np.nan], [5.0, 5.0, 7.0]]),
}
ROWS = [replace(row(name, COSTS, MEASURES), bounds={"strict": Bound(least=0.5)}) for name in ("a", "b")]


def test_a_curve_is_the_mean_with_a_band_of_one_standard_deviation():
    reward, strict, sharp = panels(ROWS, "evaluations", 3.0)
    line = reward["lines"][0]
    assert (line["x"], line["y"]) == ([0, 20, 30], [0, 2, 4])
    assert line["high"] == pytest.approx([0, 2 + 2**0.5, 4 + 8**0.5], rel=1e-5)
    assert [one["tone"] for one in reward["lines"]] == [0, 1, REFERENCE]
    assert (reward["lines"][2]["x"], reward["lines"][2]["y"]) == ([0, 30], [3, 3])
    assert (strict["lines"][2]["label"], strict["lines"][2]["y"]) == ("bound >= 0.5", [0.5, 0.5])
    assert len(sharp["lines"]) == 2 and sharp["lines"][0]["y"] == [5, 5, None]


def test_one_seed_has_no_band():
    one = replace(
        ROWS[0], costs={"evaluations": np.array([[0.0, 1.0]])}, measures={"reward": np.array([[0.0, 1.0]])}, bounds={}
    )
    assert panels([one], "evaluations", 1.0)[0]["lines"][0]["low"] is None


def test_the_reward_is_drawn_against_what_is_not_trained_on_the_bounded_first():
    sharp_last = drawings(ROWS, ["other"])
    assert [one["name"] for one in sharp_last] == ["strict", "sharp"]
    assert [one["name"] for one in drawings(ROWS, ["sharp"])] == ["strict"]
    strict = sharp_last[0]
    (first, second, third), limit = strict["lines"][0]["dots"], strict["limits"][0]
    # strict 1, 0.8, 0.3 from right to left, reward 0, 2, 4 upwards, the bound 0.5 two sevenths of the way from 0.3 to 1
    assert third["x"] < limit[0] < second["x"] < first["x"] and first["y"] > second["y"] > third["y"]
    assert (limit[0] - third["x"]) / (first["x"] - third["x"]) == pytest.approx(2 / 7, abs=1e-3)
    assert second["y"] == pytest.approx((first["y"] + third["y"]) / 2)
    assert [dot["kept"] for dot in strict["lines"][0]["dots"]] == [True, True, False]
    assert third["text"] == "a after 30 evaluations: reward 4, strict 0.3"
    assert [text for _, text in strict["y"]] == ["0", "1", "2", "3", "4"]
    assert len(sharp_last[1]["lines"][0]["dots"]) == 2  # the third has no value


def test_a_measure_that_stands_still_is_drawn_too():
    still = [replace(one, measures=MEASURES | {"sharp": np.ones((2, 3))}) for one in ROWS]
    assert all(len(line["dots"]) == 3 for line in drawings(still, [])[-1]["lines"])
