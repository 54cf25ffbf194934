"""Reads a picture and says how well it meets a prompt: the bundled model's metric and its rewards.

Pixels unlike the background are split into connected components; a component's colour is the palette colour most of
its pixels are nearest to (pure or mixed with the background, as at edges), its shape the ideal template of equal area
and centre that overlaps it best.  Only the picture and the prompt are read, never a latent or a layout.

    scenes_strict   1 when the prompt is met exactly, else 0: the metric
    scenes_sparse   share of the prompt's constraints that are met
    scenes          graded: shape fit, colour purity, bold size and clear relations, a surplus object costs its share
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from neighbor_grpo.errors import UserError
from neighbor_grpo.scenes.render import coverage
from neighbor_grpo.scenes.world import BACKGROUND, COLOURS, RELATIONS, SHAPES, SIZE, Spec, parse

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
    """One component: overlap with each shape's template, share of pixels nearest each colour, centre, radius."""

    fit: dict[str, float]
    purity: dict[str, float]
    x: float
    y: float
    radius: float  # of the circle of equal area

    @property
    def kind(self) -> tuple[str, str] | None:
        """(colour, shape), or None when it is no clear drawing of anything."""
        colour, shape = max(self.purity, key=self.purity.__getitem__), max(self.fit, key=self.fit.__getitem__)
        return (colour, shape) if self.purity[colour] >= MIN_PURITY and self.fit[shape] >= MIN_FIT else None


@cache
def _template(shape: str, dx: int, dy: int, radius: int) -> np.ndarray:
    """Ideal shape as a mask about the middle of the picture; offset and radius in quarters of a pixel."""
    middle = SIZE // 2
    return coverage(shape, middle + dx / 4, middle + dy / 4, radius / 4) > 0.5


def _fit(mask: np.ndarray, shape: str, x: float, y: float, radius: float) -> float:
    """Intersection over union of a component (given as its mask) with the ideal shape of its centre and area."""
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
    """Objects in a picture.  image [3, SIZE, SIZE] in [0, 1]"""
    if image.shape != (3, SIZE, SIZE):
        raise UserError(f"the scenes verifier reads pictures of 3 x {SIZE} x {SIZE}, not {' x '.join(map(str, image.shape))}")
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
        whole = labels == label
        fit = {shape: _fit(whole, shape, x, y, radius) for shape in SHAPES}
        found.append(Found(fit, dict(zip(COLOURS, share.tolist(), strict=True)), x, y, radius))
    return found


def _cosine(first: Found, second: Found, relation: str) -> float:
    way = np.array([first.x - second.x, first.y - second.y])
    return float(way @ RELATIONS[relation] / max(np.hypot(*way), 1e-6))


def constraints(spec: Spec, found: list[Found]) -> list[bool]:
    """Each object kind in its number, nothing else in the picture, and the relation if one is asked for."""
    kinds = [thing.kind for thing in found]
    met = [kinds.count(kind) == spec.objects.count(kind) for kind in dict.fromkeys(spec.objects)]
    met.append(all(kind in spec.objects for kind in kinds))
    if spec.relation:
        places = [[thing for thing in found if thing.kind == kind] for kind in spec.objects]
        met.append(all(places) and _cosine(places[0][0], places[1][0], spec.relation) >= MIN_COSINE)
    return met


def graded(spec: Spec, found: list[Found]) -> float:
    """Mean quality of the required objects, matched to components at best, in [0, 1].

    quality = fit' · purity · min(1, radius / BOLD)⁴   with fit' = 0 at overlap 0.7, 1 at 0.95
    score   = mean quality · (0.25 + 0.75·clip(cosine, 0, 1)) if related · required / (required + surplus)

    The fourth power makes a change of size within the renderer's own range worth a good deal, so that the score can be
    raised without leaving that range.
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


def _score(judge):
    def reward(images, prompts, metadata=None):
        pictures = images.detach().float().cpu().numpy()
        return [float(judge(parse(prompt), find(picture))) for picture, prompt in zip(pictures, prompts, strict=True)]

    return reward


scenes_strict = _score(lambda spec, found: all(constraints(spec, found)))
scenes_sparse = _score(lambda spec, found: np.mean(constraints(spec, found)))
scenes = _score(graded)
