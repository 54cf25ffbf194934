"""GenEval's rules (arXiv 2310.11513): what a prompt's metadata requires of the objects in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neighbor_grpo.rewards.geneval.detect import Detection

_MARGIN, _SHARE = 0.1, 0.5  # GenEval's constants of `relations`
_MOST = 16  # detections of a class that are counted, as in GenEval
_RELATIONS = ("left of", "right of", "above", "below")
_NAMES = {  # other names of COCO's classes -> GenEval's
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "sofa": "couch",
    "tvmonitor": "tv",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
}


@dataclass(frozen=True)
class Clause:
    """Require (or exclude) `count` objects of a class."""

    label: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None  # relation, and the earlier clause whose objects it refers to


@dataclass(frozen=True)
class Task:
    """Hold what a prompt requires of its picture."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    counting: bool  # of the tag "counting", which has its own threshold


def read_task(metadata: dict[str, Any]) -> Task:
    """Read a prompt's metadata in GenEval's format.  Raises ValueError if it has another form."""
    if "include" not in metadata:
        raise ValueError('the prompt has no GenEval metadata ("include"): give the prompts as GenEval\'s .jsonl file')
    include, exclude = (_read_clauses(metadata, key) for key in ("include", "exclude"))
    return Task(include, exclude, metadata.get("tag") == "counting")


def _read_clauses(metadata: dict[str, Any], key: str) -> tuple[Clause, ...]:
    rows = metadata.get(key, [])
    if not isinstance(rows, list):
        raise ValueError(f'GenEval metadata: "{key}" must be a list of {{"class", "count", ...}}')
    return tuple(_read_clause(row, f"{key}[{n}]", n) for n, row in enumerate(rows))


def _read_clause(row: Any, place: str, earlier: int) -> Clause:
    if not isinstance(row, dict) or not isinstance(row.get("class"), str) or not isinstance(row.get("count"), int):
        raise ValueError(f'GenEval metadata: {place} needs a "class" (a string) and a "count" (an integer)')
    if isinstance(row["count"], bool) or row["count"] < 1:
        raise ValueError(f'GenEval metadata: {place} "count" must be 1 or more')
    color, position = row.get("color"), row.get("position")
    if color is not None and not isinstance(color, str):
        raise ValueError(f'GenEval metadata: {place} "color" must be a string')
    if position is not None:
        position = _read_position(position, place, earlier)
    return Clause(row["class"], row["count"], color, position)


def _read_position(position: Any, place: str, earlier: int) -> tuple[str, int]:
    match position:
        case [str(relation), int(target)] if relation in _RELATIONS and 0 <= target < earlier:
            return relation, target
    relations = ", ".join(_RELATIONS)
    raise ValueError(f'GenEval metadata: {place} "position" must be [one of {relations}; number of an earlier clause]')


def class_name(label: str) -> str:
    """Return GenEval's name of a detector's class."""
    return _NAMES.get(label.lower(), label.lower())


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Return where box a is relative to box b: up to two of left of, right of, above, below.

    Each component of the offset of their centres is reduced by a tenth of both boxes' sizes along it.  What remains must be
    more than half of the full offset's length in a direction.
    """
    corners_a, corners_b = (torch.tensor(box, dtype=torch.float64).view(2, 2) for box in (a, b))
    offset = corners_a.mean(0) - corners_b.mean(0)
    sizes = (corners_a[1] - corners_a[0]).abs() + (corners_b[1] - corners_b[0]).abs()
    kept = (offset.abs() - _MARGIN * sizes).clamp_min(0) * offset.sign()
    x, y = (kept / offset.norm()).tolist()  # NaN for equal centres; every comparison with it is false
    sides = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {side for side, share in sides.items() if share > _SHARE}


def objects_of(detections: Sequence[Detection], label: str, threshold: float) -> list[Detection]:
    """Return the detections of a class with scores above the threshold, highest first."""
    objects = [d for d in detections if class_name(d.label) == class_name(label) and d.score > threshold]
    return sorted(objects, key=lambda d: -d.score)[:_MOST]


def find_mistakes(detections: Sequence[Detection], task: Task, threshold: float = 0.3) -> list[str]:
    """Find what is wrong with a picture that has these objects; an empty list if it is right.

    include: at least `count` objects of the class.  Those `count` with the highest scores must all have the `color` and be
    in the `position` [relation, i] to each object of the i-th clause.  exclude: fewer than `count` objects.

    Raises ValueError if a colour is required that a detection does not have.
    """
    mistakes: list[str] = []
    objects: list[list[Detection]] = []  # of each clause
    for clause in task.include:
        objects.append(objects_of(detections, clause.label, threshold)[: clause.count])
        if mistake := _mistake(clause, objects, task):
            mistakes.append(mistake)
    for clause in task.exclude:
        count = len(objects_of(detections, clause.label, threshold))
        if count >= clause.count:
            mistakes.append(f"{count} {clause.label}, not fewer than {clause.count}")
    return mistakes


def _mistake(clause: Clause, objects: Sequence[Sequence[Detection]], task: Task) -> str | None:
    """Check the last of `objects`, those of `clause`; the others are those of earlier clauses."""
    own = objects[-1]
    if len(own) < clause.count:
        return f"{len(own)} of {clause.count} {clause.label}"
    if clause.color is not None and (other := [color for d in own if (color := _color(d)) != clause.color]):
        return f"{clause.label} is {', '.join(other)}, not {clause.color}"
    if clause.position is not None:
        relation, target = clause.position
        if not all(relation in relations(d.box, other.box) for d in own for other in objects[target]):
            return f"{clause.label} is not {relation} {task.include[target].label}"
    return None


def _color(detection: Detection) -> str:
    if detection.color is None:
        raise ValueError(f'the prompt requires a color, but the detection of {detection.label} has no "color": add it')
    return detection.color
