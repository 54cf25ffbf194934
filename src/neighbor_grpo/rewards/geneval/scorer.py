"""GenEval (arXiv 2310.11513): are the objects in the picture that its prompt names, in number, colour and position?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from neighbor_grpo.errors import STRICT
from neighbor_grpo.rewards.geneval.detect import ClipColor, Detection, Detector, pixel_color, read_detections
from neighbor_grpo.rewards.geneval.rules import Task, class_name, find_mistakes, objects_of, read_task
from neighbor_grpo.rewards.learned.base import Batch, Device, Dtype, Offload, WithWeights

_DETECTOR = "facebook/mask2former-swin-small-coco-instance"


class Models(nn.Module):
    """Hold the detector, and CLIP if it names the colours."""

    def __init__(self, detector: Detector, color: ClipColor | None) -> None:
        super().__init__()
        self.detector, self.color = detector, color

    def name_color(self, image: Tensor, detection: Detection, label: str) -> str:
        """Name the colour of an object."""
        return self.color(image, detection, label) if self.color else pixel_color(image, detection)


@dataclass(frozen=True, config=STRICT)
class Geneval(WithWeights[Models]):
    """Score a picture by 1 if `rules.find_mistakes` finds nothing wrong, else 0.  Prompts need GenEval's metadata.

    The default detector has the architecture, backbone and training set of GenEval's own (Mask2Former, Swin-S, COCO
    instances), and CLIP is GenEval's; the thresholds are made for their scores.  If a detector gives no masks, CLIP sees the
    whole boxes.
    """

    detector: Annotated[str, Field(description="Mask2Former or object detector, directory or hub id")] = _DETECTOR
    detections: Annotated[
        str | None, Field(description=".jsonl with the objects of each picture, in order, instead of a detector")
    ] = None
    clip: Annotated[
        str | None, Field(description="CLIP that names colours, directory or hub id; null = nearest colour of the pixels")
    ] = "openai/clip-vit-large-patch14"
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
    def pictures(self) -> list[list[Detection]]:
        """Return the objects of each picture in the file `detections`.  Raises UserError if it cannot be read."""
        assert self.detections is not None
        return read_detections(self.detections)

    def read(self) -> Models:
        """Read the detector, and CLIP if it names the colours."""
        return Models(Detector(self.detector), ClipColor(self.clip) if self.clip else None)

    def load(self) -> None:
        """Load the file or the weights now, so that a mistake shows before a run computes anything."""
        if self.detections:
            _ = self.pictures
        else:
            super().load()

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        """Score pictures [N, 3, H, W]."""
        if self.detections:
            return [self._score_listed(n, len(prompts), known) for n, known in enumerate(metadata)]
        scores: list[float | Exception] = []
        with self.on_device() as (models, device):
            for n in range(0, len(prompts), self.batch):
                batch = images[n : n + self.batch].to(device)
                detections = models.detector.find(batch, min(self.threshold, self.counting_threshold))
                rows = zip(batch, detections, metadata[n : n + self.batch], strict=True)
                scores += [self._score_detected(models, *row) for row in rows]
        return scores

    def _score_listed(self, place: int, pictures: int, metadata: dict[str, Any]) -> float | Exception:
        """Score the picture at `place` of `pictures` by the file; its line is metadata["picture"] if an evaluation set it."""
        total = len(self.pictures)
        n = metadata.get("picture", place if total == pictures else None)
        if not isinstance(n, int) or not 0 <= n < total:  # which line describes this picture is unknown
            which = f"these {pictures}" if n is None else f"picture {n!r} (counted from 0)"
            return ValueError(f"{self.detections} describes {total} pictures, not {which}: give one line a picture")
        try:
            task = read_task(metadata)
            return float(not find_mistakes(self.pictures[n], task, self._threshold(task)))
        except ValueError as error:  # metadata of another form, or a detection without the color that decides
            return error

    def _score_detected(
        self, models: Models, image: Tensor, detections: Sequence[Detection], metadata: dict[str, Any]
    ) -> float | Exception:
        try:
            task = read_task(metadata)
            colored = self._colored(models, image, detections, task)
        except ValueError as error:  # metadata of another form, or a class that the detector does not know
            return error
        return float(not find_mistakes(colored, task, self._threshold(task)))

    def _threshold(self, task: Task) -> float:
        return self.counting_threshold if task.counting else self.threshold

    def _colored(self, models: Models, image: Tensor, detections: Sequence[Detection], task: Task) -> Sequence[Detection]:
        """Name the colours that the clauses require.  Raises ValueError if the detector does not know a class."""
        known = {class_name(label) for label in models.detector.labels.values()}
        for clause in task.include:
            if class_name(clause.label) not in known:
                raise ValueError(f"the detector does not know the class {clause.label!r}: choose another detector")
            if clause.color is not None:
                required = objects_of(detections, clause.label, self._threshold(task))[: clause.count]
                colors = {id(d): models.name_color(image, d, clause.label) for d in required}
                detections = [replace(d, color=colors.get(id(d), d.color)) for d in detections]
        return detections
