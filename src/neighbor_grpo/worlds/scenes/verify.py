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
_CROSS = ndimage.generate_binary_structure(2, 1)  # pixels of a component touch by an edge
_PLACES = np.arange(SIZE)
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
def _templates(dx: int, dy: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the ideal shapes as masks around the middle of the picture, and count their pixels; in quarters of a pixel."""
    middle = SIZE // 2
    masks = np.stack([coverage(shape, middle + dx / 4, middle + dy / 4, radius / 4) > 0.5 for shape in SHAPES])
    return masks, masks.sum((1, 2))


def _fits(mask: np.ndarray, top: int, left: int, area: int, x: float, y: float) -> dict[str, float]:
    """Compute the intersection over union of a component with the ideal shapes of its centre and area.

    mask: the component in its box, whose first row and column are top and left.
    """
    column, row, middle, radius = int(x), int(y), SIZE // 2, (area / np.pi) ** 0.5
    templates, sizes = _templates(round(4 * (x - column)), round(4 * (y - row)), round(4 * radius))
    down, right = top + middle - row, left + middle - column  # where the box begins in the templates' picture
    skip_rows, skip_columns = max(-down, 0), max(-right, 0)
    part = mask[skip_rows : SIZE - down, skip_columns : SIZE - right]
    rows, columns = slice(down + skip_rows, down + len(mask)), slice(right + skip_columns, right + mask.shape[1])
    both = np.count_nonzero(templates[:, rows, columns] & part, axis=(1, 2))
    fits = (both / (area + sizes - both)).tolist()
    return {
        name: 0.0 if _leaves(int(np.ceil(radius * shape.reach)) + 2, column, row) else fit
        for (name, shape), fit in zip(SHAPES.items(), fits, strict=True)
    }


def _leaves(reach: int, column: int, row: int) -> bool:
    """Return whether a template of this reach leaves its own picture: it is too large for anything ideal."""
    middle = SIZE // 2
    return reach >= middle and any(min(reach, at) > middle or min(reach + 1, SIZE - at) > middle for at in (column, row))


def find(image: np.ndarray) -> list[Found]:
    """Find the objects in a picture [3, SIZE, SIZE] in [0, 1].  Raises UserError for another size."""
    if image.shape != (3, SIZE, SIZE):
        size = " x ".join(map(str, image.shape))
        raise UserError(f"scenes are pictures of 3 x {SIZE} x {SIZE}, not {size}: set height and width to {SIZE}")
    paint = image - _BACKGROUND[:, None, None]
    labels, count = ndimage.label(np.abs(paint).max(0) > FOREGROUND, _CROSS)
    places = np.flatnonzero(labels)  # of all objects' pixels at once: numpy's calls cost more than their work
    label = labels.ravel()[places]
    areas = np.bincount(label, minlength=count + 1)
    nearest = _nearest(paint.reshape(3, -1)[:, places])
    shares = np.bincount(label * len(COLOURS) + nearest, minlength=(count + 1) * len(COLOURS)).reshape(count + 1, -1)
    found = []
    for n, box in enumerate(ndimage.find_objects(labels), 1):
        area = int(areas[n])
        if area < MIN_AREA:
            continue
        mask = labels[box] == n
        top, left = box[0].start, box[1].start
        x = float(mask.sum(0) @ _PLACES[: mask.shape[1]]) / area + left + 0.5
        y = float(mask.sum(1) @ _PLACES[: len(mask)]) / area + top + 0.5
        purity = dict(zip(COLOURS, (shares[n] / area).tolist(), strict=True))
        found.append(Found(_fits(mask, top, left, area, x, y), purity, x, y, (area / np.pi) ** 0.5))
    return found


def _nearest(paint: np.ndarray) -> np.ndarray:
    """Return the colour that each pixel is nearest to, pure or mixed with the background.  [3, pixels] -> [pixels]"""
    amount = np.clip(_PAINTS @ paint / np.square(_PAINTS).sum(1)[:, None], 0, 1)  # [colours, pixels]
    off = paint[:, None] - amount * _PAINTS.T[:, :, None]  # [3, colours, pixels]
    return np.square(off, out=off).sum(0).argmin(0)


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
