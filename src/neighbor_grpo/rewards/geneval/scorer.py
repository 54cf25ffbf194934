"""GenEval (arXiv 2310.11513): are the objects there that the prompt names, in that number, colour and place?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from neighbor_grpo.errors import STRICT
from neighbor_grpo.models.registry import pick_device
from neighbor_grpo.rewards.geneval.detect import ClipColor, Detection, Detector, pixel_color, read_detections
from neighbor_grpo.rewards.learned.base import Batch, Device, Dtype, Offload

_MARGIN, _SHARE, _MOST = 0.1, 0.5, 16  # GenEval's: see `relations`; objects of a class that are looked at
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
_DETECTOR = "facebook/mask2former-swin-small-coco-instance"


def class_name(label: str) -> str:
    return _NAMES.get(label.lower(), label.lower())


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Where box a is relative to box b: up to two of left of, right of, above, below.

    The offset of their centres, each component drawn towards 0 by a tenth of both boxes' sizes along it, must keep more
    than half of the full offset's length in a direction.
    """
    a, b = (torch.tensor(box, dtype=torch.float64).view(2, 2) for box in (a, b))
    offset, sizes = a.mean(0) - b.mean(0), (a[1] - a[0]).abs() + (b[1] - b[0]).abs()
    kept = (offset.abs() - _MARGIN * sizes).clamp_min(0) * offset.sign()
    x, y = (kept / offset.norm()).tolist()  # of equal centres NaN, which exceeds no share
    sides = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {side for side, share in sides.items() if share > _SHARE}


def _objects(detections: Sequence[Detection], label: str, threshold: float) -> list[Detection]:
    """Those of a class with scores above the threshold, the surest first."""
    those = [d for d in detections if class_name(d.label) == class_name(label) and d.score > threshold]
    return sorted(those, key=lambda d: -d.score)[:_MOST]


def judge(detections: Sequence[Detection], metadata: dict, threshold: float = 0.3) -> list[str]:
    """What is wrong with a picture in which these objects were found; nothing if it is right.

    include: at least `count` objects of the class, the surest `count` of them all of the `color`, and each at the
    `position` [relation, i] from each of those of the i-th clause.  exclude: fewer than `count` objects.
    """
    wrong, groups = [], []
    for clause in metadata["include"]:
        label, count = clause["class"], clause["count"]
        objects = _objects(detections, label, threshold)[:count]
        reason = None
        if len(objects) < count:
            reason = f"{len(objects)} of {count} {label}"
        elif "color" in clause and (other := [_color(d) for d in objects if _color(d) != clause["color"]]):
            reason = f"{label} is {', '.join(other)}, not {clause['color']}"
        elif "position" in clause:
            relation, i = clause["position"]
            if not all(relation in relations(d.box, target.box) for d in objects for target in groups[i]):
                reason = f"{label} is not {relation} {metadata['include'][i]['class']}"
        groups.append(objects)
        wrong += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        found = len(_objects(detections, clause["class"], threshold))
        if found >= clause["count"]:
            wrong.append(f"{found} {clause['class']}, not fewer than {clause['count']}")
    return wrong


def _color(found: Detection) -> str:
    if found.color is None:
        raise ValueError(f'a color is asked for, but the detection of {found.label} has no "color"')
    return found.color


@dataclass(frozen=True, config=STRICT)
class Geneval:
    """1 where `judge` finds nothing wrong, else 0, for prompts with GenEval's metadata.

    The default detector has the architecture, backbone and training set of GenEval's own (Mask2Former, Swin-S, COCO
    instances), for whose scores the thresholds are made; so has CLIP.  A detector without masks shows CLIP whole boxes.
    """

    detector: Annotated[str, Field(description="Mask2Former or object detector, directory or hub id")] = _DETECTOR
    detections: Annotated[
        str | None, Field(description=".jsonl with the objects of each picture, in order, instead of a detector")
    ] = None
    clip: Annotated[str | None, Field(description="names colours, directory or hub id; null: nearest colour of the pixels")] = (
        "openai/clip-vit-large-patch14"
    )
    threshold: Annotated[float, Field(ge=0, lt=1, description="score above which an object counts")] = 0.3
    counting_threshold: Annotated[float, Field(ge=0, lt=1, description='the same for prompts of tag "counting"')] = 0.9
    device: Device = "auto"
    dtype: Dtype = "float32"
    batch: Batch = 8
    offload: Offload = False

    @model_validator(mode="after")
    def _check(self) -> "Geneval":
        if self.detections and self.detector != _DETECTOR:
            raise ValueError("detections come from a file or from a detector: set only one of the two")
        return self

    @cached_property
    def listed(self) -> list[list[Detection]]:
        return read_detections(self.detections)

    @cached_property
    def models(self) -> nn.ModuleDict:
        parts = {"detector": Detector(self.detector)} | ({"color": ClipColor(self.clip)} if self.clip else {})
        models = nn.ModuleDict(parts).to(getattr(torch, self.dtype)).eval().requires_grad_(False)
        return models if self.offload else models.to(pick_device(self.device))

    def load(self) -> None:
        """Read the weights or the file now, so that a mistake shows before anything is computed."""
        pick_device(self.device)
        _ = self.listed if self.detections else self.models

    def _floor(self, metadata: dict) -> float:
        return self.counting_threshold if metadata.get("tag") == "counting" else self.threshold

    def _score(self, image: Tensor, detections: list[Detection] | Exception, metadata: dict) -> float | Exception:
        if isinstance(detections, Exception):
            return detections
        if "include" not in metadata:
            return ValueError('the prompt has no GenEval metadata ("include"): give the prompts as its .jsonl file')
        try:
            if not self.detections:
                detections = self._colored(image, detections, metadata)
            return float(not judge(detections, metadata, self._floor(metadata)))
        except Exception as error:  # metadata of another form, or what cannot be judged
            return error

    def _colored(self, image: Tensor, detections: list[Detection], metadata: dict) -> list[Detection]:
        """Detections, of which those have a colour that a clause asks for."""
        known = {class_name(label) for label in self.models["detector"].labels.values()}
        for clause in metadata["include"]:
            label = clause["class"]
            if class_name(label) not in known:
                raise ValueError(f"the detector knows no {label!r}")
            if "color" in clause:
                asked = _objects(detections, label, self._floor(metadata))[: clause["count"]]
                named = {id(d): self.models["color"](image, d, label) if self.clip else pixel_color(image, d) for d in asked}
                detections = [replace(d, color=named.get(id(d), d.color)) for d in detections]
        return detections

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        if self.detections:
            return [
                self._score(image, self._line(known, n, len(prompts)), known)
                for n, (image, known) in enumerate(zip(images, metadata, strict=True))
            ]
        device = pick_device(self.device)
        detector = self.models.to(device)["detector"]
        scores: list[float | Exception] = []
        try:
            for n in range(0, len(prompts), self.batch):
                part = images[n : n + self.batch].to(device)
                found = detector.find(part, min(self.threshold, self.counting_threshold))
                scores += [self._score(*row) for row in zip(part, found, metadata[n : n + self.batch], strict=True)]
        finally:
            if self.offload:
                self.models.to("cpu")
        return scores

    def _line(self, metadata: dict, place: int, pictures: int) -> list[Detection] | Exception:
        """What the file says of a picture: the line of its number in an evaluation, else of its place among all."""
        n = metadata.get("picture", place if len(self.listed) == pictures else None)
        if n is None or n >= len(self.listed):  # which line is which picture's is then anyone's guess
            which = f"these {pictures}" if n is None else f"picture {n} (counted from 0)"
            return ValueError(f"{self.detections} describes {len(self.listed)} pictures, not {which}")
        return self.listed[n]
