"""The verifier: how well a picture meets a prompt, as the metric and the rewards of the bundled model.

Pixels unlike the background are split into connected components; a component's colour is the palette colour most of
its pixels are nearest to (pure or mixed with the background, as at edges), its shape the ideal template of equal area
and centre that overlaps it best.  Its input is the picture and the prompt, never a latent or a layout.

    scenes_strict   1 when the prompt is met exactly, else 0: the metric
    scenes_sparse   share of the prompt's constraints that are met
    scenes          graded by shape fit, colour purity, bold size and clear relations; a surplus object costs its share
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.worlds.scenes.render import coverage
from neighbor_grpo.worlds.scenes.world import BACKGROUND, COLOURS, RELATIONS, SHAPES, SIZE, Spec, parse

_BACKGROUND = np.array(BACKGROUND, np.float32)
_PAINTS = np.array(list(COLOURS.values()), np.float32) - _BACKGROUND  # a pixel at an edge is a mixture of the two
FOREGROUND = 0.22  # a pixel is an object's when a channel differs from the background by more
MIN_AREA = 12  # pixels; smaller specks are decoding noise
MIN_FIT = 0.72  # overlap (intersection over union) with the template from which a shape counts as drawn
MIN_PURITY = 0.75  # share of a component's pixels that have its colour
MIN_COSINE = 0.5  # a relation holds within 60 degrees of its axis
BOLD = {1: 16.0, 2: 12.0, 3: 10.0, 4: 9.0}  # radius that is as bold as can be, by the number of objects that must fit


@dataclass(frozen=True)
class Found:
    """Describe a component: overlap with each shape's template, share of pixels nearest each colour, centre, radius."""

    fit: dict[str, float]
    purity: dict[str, float]
    x: float
    y: float
    radius: float  # of the circle of equal area

    @property
    def kind(self) -> tuple[str, str] | None:
        """Return (colour, shape), or None if neither is clear."""
        colour, shape = max(self.purity, key=self.purity.__getitem__), max(self.fit, key=self.fit.__getitem__)
        return (colour, shape) if self.purity[colour] >= MIN_PURITY and self.fit[shape] >= MIN_FIT else None


@cache
def _template(shape: str, dx: int, dy: int, radius: int) -> np.ndarray:
    """Draw an ideal shape as a mask around the middle of the picture; offset and radius in quarters of a pixel."""
    middle = SIZE // 2
    return coverage(shape, middle + dx / 4, middle + dy / 4, radius / 4) > 0.5


def _fit(mask: np.ndarray, shape: str, x: float, y: float, radius: float) -> float:
    """Compute the intersection over union of a component, given as a mask, with the ideal shape of its centre and area."""
    column, row = int(x), int(y)
    middle, reach = SIZE // 2, int(np.ceil(radius * SHAPES[shape].reach)) + 2
    template = _template(shape, round(4 * (x - column)), round(4 * (y - row)), round(4 * radius))
    top, bottom = max(row - reach, 0), min(row + reach + 1, SIZE)
    left, right = max(column - reach, 0), min(column + reach + 1, SIZE)
    ideal = template[
        max(middle + top - row, 0) : middle + bottom - row, max(middle + left - column, 0) : middle + right - column
    ]
    if ideal.shape != (bottom - top, right - left):  # so large that the template leaves its own picture: nothing ideal
        return 0.0
    both = np.count_nonzero(mask[top:bottom, left:right] & ideal)
    return both / (np.count_nonzero(mask) + np.count_nonzero(template) - both)


def find(image: np.ndarray) -> list[Found]:
    """Find the objects in a picture [3, SIZE, SIZE] in [0, 1].  Raises UserError for another size."""
    if image.shape != (3, SIZE, SIZE):
        size = " x ".join(map(str, image.shape))
        raise UserError(f"scenes are pictures of 3 x {SIZE} x {SIZE}, not {size}: set height and width to {SIZE}")
    pixels = np.moveaxis(image, 0, -1)
    labels, _ = ndimage.label(np.abs(pixels - _BACKGROUND).max(-1) > FOREGROUND)
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == label
        area = np.count_nonzero(mask)
        if area < MIN_AREA:
            continue
        rows, columns = np.nonzero(mask)
        x, y = columns.mean() + box[1].start + 0.5, rows.mean() + box[0].start + 0.5
        paint = pixels[box][mask] - _BACKGROUND  # [area, 3]
        amount = np.clip(paint @ _PAINTS.T / np.square(_PAINTS).sum(1), 0, 1)  # [area, colours]
        distance = np.square(paint[:, None] - amount[:, :, None] * _PAINTS).sum(-1)
        share = np.bincount(distance.argmin(1), minlength=len(COLOURS)) / area
        radius = (area / np.pi) ** 0.5
        component = labels == label
        fit = {shape: _fit(component, shape, x, y, radius) for shape in SHAPES}
        found.append(Found(fit, dict(zip(COLOURS, share.tolist(), strict=True)), x, y, radius))
    return found


def _cosine(first: Found, second: Found, relation: str) -> float:
    """Compute the cosine between the way from second to first and the axis of the relation."""
    way = np.array([first.x - second.x, first.y - second.y])
    return float(way @ RELATIONS[relation] / max(np.hypot(*way), 1e-6))


def constraints(spec: Spec, found: list[Found]) -> list[bool]:
    """Check each kind of object for its number, the picture for anything else, and the relation if the prompt names one."""
    kinds = [thing.kind for thing in found]
    met = [kinds.count(kind) == spec.objects.count(kind) for kind in dict.fromkeys(spec.objects)]
    met.append(all(kind in spec.objects for kind in kinds))
    if spec.relation:
        places = [[thing for thing in found if thing.kind == kind] for kind in spec.objects]
        met.append(all(places) and _cosine(places[0][0], places[1][0], spec.relation) >= MIN_COSINE)
    return met


def graded(spec: Spec, found: list[Found]) -> float:
    """Compute the mean quality of the required objects, in [0, 1], under the best match to components.

    quality = fit' · purity · min(1, radius / BOLD)⁴   with fit' = 0 at overlap 0.7, 1 at 0.95
    score   = mean quality · (0.25 + 0.75·clip(cosine, 0, 1)) if related · required / (required + surplus)

    The fourth power rewards a change of size within the renderer's own range strongly, so that the score can rise without
    leaving that range.
    """
    if not found:
        return 0.0
    bold = BOLD[min(len(spec.objects), max(BOLD))]
    quality = np.array(
        [
            [
                np.clip((thing.fit[shape] - 0.7) / 0.25, 0, 1) * thing.purity[colour] * min(1, thing.radius / bold) ** 4
                for thing in found
            ]
            for colour, shape in spec.objects
        ]
    )  # [required, found]
    wanted, taken = linear_sum_assignment(quality, maximize=True)
    n = len(spec.objects)
    score = quality[wanted, taken].sum() / n * n / (n + max(len(found) - n, 0))
    if spec.relation:
        matched = dict(zip(wanted.tolist(), taken.tolist(), strict=True))
        cosine = _cosine(found[matched[0]], found[matched[1]], spec.relation) if len(matched) == 2 else 0.0
        score *= 0.25 + 0.75 * np.clip(cosine, 0, 1)
    return float(score)


def scenes_strict(images: Tensor, prompts: Sequence[str], metadata: object = None) -> list[float]:
    """Score pictures 1 if they meet their prompt exactly, else 0."""
    return [float(all(constraints(spec, found))) for spec, found in _read(images, prompts)]


def scenes_sparse(images: Tensor, prompts: Sequence[str], metadata: object = None) -> list[float]:
    """Score pictures by the share of their prompt's constraints that they meet."""
    return [float(np.mean(constraints(spec, found))) for spec, found in _read(images, prompts)]


def scenes(images: Tensor, prompts: Sequence[str], metadata: object = None) -> list[float]:
    """Score pictures by the mean quality of the objects that their prompt requires."""
    return [graded(spec, found) for spec, found in _read(images, prompts)]


def _read(images: Tensor, prompts: Sequence[str]) -> Iterator[tuple[Spec, list[Found]]]:
    """Iterate over what each prompt requires and what its picture [3, SIZE, SIZE] shows."""
    for picture, prompt in zip(images.detach().float().cpu().numpy(), prompts, strict=True):
        yield parse(prompt), find(picture)
