import json

import pytest
import torch
from detectors import BESIDE, COW, LINES, UNDER, apples, seen

from neighbor_grpo.rewards.geneval.rules import find_mistakes, read_task, relations
from neighbor_grpo.rewards.geneval.scorer import Geneval


def mistakes(detections, metadata, threshold=0.3):
    return find_mistakes(detections, read_task(metadata), threshold)


@pytest.mark.parametrize(
    ("name", "detections", "right"),
    [
        ("one", seen(("computer mouse", 0.5)), True),
        ("one", seen(("mouse", 0.31), ("cat", 0.9)), True),  # COCO's own name
        ("one", seen(("computer mouse", 0.3)), False),  # the threshold itself is not above it
        ("one", seen(("cat", 0.9)), False),
        ("one", [], False),
        ("two", seen(("oven", 0.9), ("bed", 0.4)), True),
        ("two", seen(("oven", 0.9), ("oven", 0.8)), False),
        ("counting", apples(0.95, 0.91, 0.99, 0.92), True),
        ("counting", apples(0.95, 0.91, 0.99, 0.92, 0.9), True),  # the fifth is not sure enough to count
        ("counting", apples(0.95, 0.91, 0.99, 0.92, 0.93), False),
        ("counting", apples(0.95, 0.91, 0.99, 0.85), False),
        ("colors", seen(("bicycle", 0.5, "red")), True),
        ("colors", seen(("bicycle", 0.5, "red"), ("bicycle", 0.4, "blue")), True),  # the surest one decides
        ("colors", seen(("bicycle", 0.4, "red"), ("bicycle", 0.5, "blue")), False),
        ("colors", seen(("car", 0.5, "red")), False),
        ("position", seen(("cow", 0.9, None, COW), ("remote", 0.5, None, UNDER)), True),
        ("position", seen(("cow", 0.9, None, UNDER), ("remote", 0.5, None, COW)), False),
        ("position", seen(("cow", 0.9, None, COW), ("remote", 0.5, None, BESIDE)), False),
        ("position", seen(("remote", 0.5, None, UNDER)), False),
        ("color_attr", seen(("toilet", 0.5, "white"), ("apple", 0.5, "red")), True),
        ("color_attr", seen(("toilet", 0.5, "red"), ("apple", 0.5, "white")), False),
        ("color_attr", seen(("toilet", 0.5, "white"), ("apple", 0.5, "green")), False),
    ],
)
def test_decisions(name, detections, right, tmp_path):
    metadata = LINES[name]
    wrong = mistakes(detections, metadata, 0.9 if name == "counting" else 0.3)
    assert (wrong == []) is right
    rows = [{"label": d.label, "score": d.score, "box": d.box} | ({"color": d.color} if d.color else {}) for d in detections]
    (tmp_path / "found.jsonl").write_text(json.dumps({"detections": rows}))
    reward = Geneval(detections=str(tmp_path / "found.jsonl"))  # picks the threshold by the tag itself
    assert reward(torch.zeros(1, 3, 8, 8), [metadata["prompt"]], [metadata]) == [float(right)]


def test_reasons():
    assert mistakes([], LINES["two"]) == ["0 of 1 oven", "0 of 1 bed"]
    assert mistakes(apples(*[0.95] * 20), LINES["counting"], 0.9) == ["16 apple, not fewer than 5"]  # 16 are looked at
    assert mistakes(seen(("bicycle", 0.5, "pink")), LINES["colors"]) == ["bicycle is pink, not red"]
    assert mistakes(seen(("remote", 0.5)), LINES["position"]) == ["0 of 1 cow"]
    assert mistakes(seen(("cow", 0.5), ("remote", 0.5)), LINES["position"]) == ["tv remote is not below cow"]


def test_every_object_counted_must_have_its_place_and_colour():
    dog = {"class": "dog", "count": 2, "color": "red", "position": ["below", 0]}
    metadata = {"include": [{"class": "cow", "count": 2}, dog]}
    cows, dogs = [("cow", 0.9, None, COW), ("cow", 0.8, None, (40, 12, 60, 32))], [("dog", 0.9, "red", UNDER)]
    assert mistakes(seen(*cows, *dogs, ("dog", 0.8, "red", UNDER)), metadata) == []
    assert mistakes(seen(*cows, *dogs, ("dog", 0.8, "blue", UNDER)), metadata) == ["dog is blue, not red"]
    assert mistakes(seen(*cows, *dogs, ("dog", 0.8, "red", BESIDE)), metadata) == ["dog is not below cow"]
    cows[1] = ("cow", 0.8, None, (40, 60, 60, 80))
    assert mistakes(seen(*cows, *dogs, ("dog", 0.8, "red", UNDER)), metadata) == ["dog is not below cow"]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [  # of a 20 x 20 box from a 20 x 20 one: components shrink by 4
        ((30, 0), {"right of"}),
        ((-30, 0), {"left of"}),
        ((0, 30), {"below"}),
        ((0, -30), {"above"}),
        ((30, 30), {"right of", "below"}),  # 26 / 42.4 = 0.61
        ((7, 7), set()),  # 3 / 9.9
        ((14, 14), {"right of", "below"}),
        ((13, 13), set()),  # 10 / 19.8 = 0.505, 9 / 18.4 = 0.49
        ((30, 16), {"right of"}),  # 12 / 34
        ((3, -3), set()),
        ((4, 0), set()),
        ((0, 0), set()),
        ((8.1, 0), {"right of"}),
        ((7.9, 0), set()),
    ],
)
def test_relations_by_hand(offset, expected):
    box = (50, 50, 70, 70)
    assert relations([c + o for c, o in zip(box, offset * 2, strict=True)], box) == expected


def test_margin_follows_each_side_of_the_boxes():
    assert relations((0, 0, 200, 10), (130, 0, 230, 10)) == {"left of"}  # centres 80 apart, margin 30: 50 / 80
    assert relations((0, 0, 400, 10), (230, 0, 330, 10)) == set()  # centres 80 apart, margin 50
    assert relations((0, 0, 400, 10), (180, 20, 220, 30)) == {"above"}


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({}, "include"),
        ({"include": 3}, "include"),
        ({"include": [{"class": "cat"}]}, r"include\[0\].*count"),
        ({"include": [{"count": 1}]}, r"include\[0\].*class"),
        ({"include": ["cat"]}, r"include\[0\]"),
        ({"include": [{"class": "cat", "count": 1, "color": 3}]}, "color"),
        ({"include": [], "exclude": [{"class": "cat", "count": "1"}]}, r"exclude\[0\].*count"),
        (
            {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["near", 0]}]},
            r"include\[1\].*left of",
        ),
        ({"include": [{"class": "cat", "count": 1, "position": ["below", 0]}]}, r"include\[0\].*earlier clause"),
        ({"include": [{"class": "cat", "count": 1, "position": ["below"]}]}, r"include\[0\].*position"),
    ],
)
def test_metadata_of_another_form_is_refused_by_its_key(metadata, key):
    with pytest.raises(ValueError, match=key):
        read_task(metadata)
