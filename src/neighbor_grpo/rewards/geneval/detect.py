"""Detection of objects in pictures and of their colours, by a file or by models."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.colors import XKCD_COLORS, to_rgb
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
)

from neighbor_grpo.console import one_line, reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import to_bytes
from neighbor_grpo.rewards.learned.images import crop, normalise

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")  # as in GenEval
_TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
_GREY = 0.6  # GenEval's replacement of all pixels outside an object's mask


@dataclass(frozen=True)
class Detection:
    """Describe an object that was found in a picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    color: str | None = None
    mask: Tensor | None = field(default=None, compare=False, repr=False)  # [H, W] bool, if the detector gives one


def read_detections(path: str) -> list[list[Detection]]:
    """Read a .jsonl file with a line for each picture.

    A line is {"detections": [{"label", "score", "box": [x0, y0, x1, y1], "color" (optional)}, ...]}.  Raises UserError for a
    missing file or a line of another form.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(
            f"no file of detections {path!r} ({reason_of(error)}): give a .jsonl with a line for each picture"
        ) from error
    pictures = []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        try:
            rows = json.loads(line)["detections"]
            pictures.append([_detection(**row) for row in rows])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise UserError(
                f"{path} line {number} ({one_line(str(error), 200)}): write "
                '{"detections": [{"label", "score", "box", "color"}, ...]}'
            ) from error
    return pictures


def _detection(label: str, score: float, box: Sequence[float], color: str | None = None) -> Detection:
    x0, y0, x1, y1 = map(float, box)
    if not all(map(isfinite, (x0, y0, x1, y1, float(score)))):
        raise ValueError("box and score must be finite")
    if not isinstance(label, str) or not isinstance(color, str | None):
        raise TypeError("label and color must be texts")
    return Detection(label, float(score), (x0, y0, x1, y1), color)


@contextmanager
def _loading(what: str, path: str) -> Iterator[None]:
    """Turn the errors of transformers' loading into a UserError."""
    try:
        yield
    except Exception as error:  # transformers, safetensors and tokenizers have their own, and a damaged file raises any
        raise UserError(f"no {what} at {path!r} ({reason_of(error, 200)}): give an undamaged directory or a hub id") from error


class Detector(nn.Module):
    """Find objects by a transformers model for object detection, or by Mask2Former (instance segmentation)."""

    def __init__(self, path: str) -> None:
        super().__init__()
        with _loading("detector", path):
            config = AutoConfig.from_pretrained(path)
            self.masks = config.model_type == "mask2former"
            auto = AutoModelForUniversalSegmentation if self.masks else AutoModelForObjectDetection
            self.model = auto.from_pretrained(path)
            self.processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        self.labels: dict[int, str] = {int(index): label for index, label in config.id2label.items()}

    def find(self, images: Tensor, threshold: float) -> list[list[Detection]]:
        """Find the objects of pictures [n, 3, H, W] with scores above the threshold."""
        height, width = images.shape[2:]
        pixels = list(to_bytes(images).permute(0, 2, 3, 1).numpy())
        inputs = self.processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
        inputs = inputs.to(self.model.device, self.model.dtype)
        out = self.model(**inputs)
        if self.masks:
            scored = zip(out.class_queries_logits.float(), out.masks_queries_logits.float(), strict=True)
            return [self._instances(*picture, (height, width), threshold) for picture in scored]
        out.logits, out.pred_boxes = out.logits.float(), out.pred_boxes.float()  # half precision would round boxes to pixels
        sizes = [(height, width)] * len(pixels)
        detected = self.processor.post_process_object_detection(out, threshold, target_sizes=sizes)
        return [
            [
                Detection(self.labels[label], score, tuple(box))
                for label, score, box in zip(*(each[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
            ]
            for each in detected
        ]

    def _instances(self, logits: Tensor, masks: Tensor, size: tuple[int, int], threshold: float) -> list[Detection]:
        """Score each mask by class probability * mean probability inside the mask, as for COCO (arXiv 2112.01527)."""
        scores = logits.softmax(-1)[:, :-1]  # the last class is "no object"
        query, label = (scores > threshold).nonzero(as_tuple=True)
        if not len(query):
            return []
        masks = F.interpolate(masks[query, None], size, mode="bilinear")[:, 0]  # resized, never padded
        inside = masks > 0
        area = inside.sum((1, 2))
        scores = scores[query, label] * (masks.sigmoid() * inside).sum((1, 2)) / area.clamp_min(1)
        return [
            Detection(self.labels[int(label[n])], scores[n].item(), _bounds(inside[n]), mask=inside[n].cpu())
            for n in range(len(query))
            if area[n] and scores[n] > threshold
        ]


def _bounds(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1


def cut_out(image: Tensor, detection: Detection) -> tuple[Tensor, Tensor]:
    """Return the part of a picture [3, H, W] inside the box, and that of the mask (all True without one)."""
    height, width = image.shape[1:]
    x0, y0, x1, y1 = (round(value) for value in detection.box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    rows, columns = slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))
    mask = torch.ones(height, width, dtype=torch.bool) if detection.mask is None else detection.mask
    return image[:, rows, columns], mask[rows, columns].to(image.device)


def lab(rgb: Tensor) -> Tensor:
    """Convert sRGB [..., 3] in [0, 1] to CIELAB under D65."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = rgb.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)  # white is 1, 1, 1
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@cache
def _named() -> tuple[list[str], Tensor]:
    """Return names out of COLORS, and colours in CIELAB: those of the xkcd survey whose name ends in one, and greys."""
    named = [(name.removeprefix("xkcd:").split()[-1], to_rgb(value)) for name, value in XKCD_COLORS.items()]
    named = [(name, rgb) for name, rgb in named if name in COLORS]
    named += [("black" if grey < 8 else "white", (grey / 16,) * 3) for grey in range(17)]  # grey is not in COLORS
    return [name for name, _ in named], lab(torch.tensor([rgb for _, rgb in named]))


def pixel_color(image: Tensor, detection: Detection) -> str:
    """Name the colour nearest in CIELAB to the median of the object, over its mask or the middle of its box."""
    part, mask = cut_out(image, detection)
    if detection.mask is None:  # half as high and wide: the corners of a box show the background
        height, width = (side // 4 for side in part.shape[1:])
        part, mask = (x[..., height : x.shape[-2] - height, width : x.shape[-1] - width] for x in (part, mask))
    names, colors = _named()
    median = part[:, mask].float().cpu().quantile(0.5, dim=1)
    return names[int((colors - lab(median)).norm(dim=-1).argmin())]


class ClipColor(nn.Module):
    """Name colours of objects by zero-shot classification with CLIP, with GenEval's prompts."""

    def __init__(self, path: str) -> None:
        super().__init__()
        with _loading("CLIP", path):
            self.model = CLIPModel.from_pretrained(path)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        vision = self.model.config.vision_config
        assert isinstance(vision, CLIPVisionConfig) and isinstance(vision.image_size, int)
        self.size = vision.image_size
        self.classifier = lru_cache(maxsize=128)(self._classifier)

    def _classifier(self, label: str) -> Tensor:
        """Return the mean direction [colours, d] of each colour's prompts."""
        texts = [template.format(color, label) for color in COLORS for template in _TEMPLATES]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
        features = F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        return F.normalize(features.unflatten(0, (len(COLORS), -1)).mean(1), dim=-1)

    def forward(self, image: Tensor, detection: Detection, label: str) -> str:
        """Name the colour of an object of the class `label` in a picture [3, H, W]."""
        part, mask = cut_out(image, detection)
        shown = normalise(crop(torch.where(mask, part, _GREY)[None], self.size))
        features = self.model.get_image_features(pixel_values=shown.to(self.model.dtype)).pooler_output
        return COLORS[int((features @ self.classifier(label).to(features.device).T).argmax())]
