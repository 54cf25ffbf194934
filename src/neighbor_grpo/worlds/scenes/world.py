"""The world of the bundled model: coloured shapes, their prompts and their layouts.

A `Spec` is what a prompt requires; a `Scene` is one layout that meets it.  Pictures are 64 x 64 pixels, x grows to the
right and y downwards, lengths are in pixels.  The `radius` of an object is that of the circle of equal area, whatever its
shape, so that a star and a square of one radius are equally bold.
"""

import itertools
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neighbor_grpo.errors import UserError

SIZE = 64
COLOURS = {
    "red": (0.86, 0.15, 0.15),
    "orange": (0.98, 0.56, 0.10),
    "yellow": (0.97, 0.86, 0.16),
    "green": (0.17, 0.64, 0.26),
    "blue": (0.14, 0.37, 0.86),
    "purple": (0.56, 0.20, 0.72),
}
BACKGROUND = (0.95, 0.95, 0.94)
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
# unit vector from the second object named to the first
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Shape:
    """Describe the set of points that lie on the inner side of at least `inside` lines.

    All lines have one distance from the centre.  The star is a pentagram: inside four of its five lines.  Lengths are in
    units of the radius.
    """

    normals: tuple[float, ...]  # outward normals of the lines, in degrees
    inside: int
    inradius: float  # distance of the lines from the centre
    reach: float  # distance of the farthest point from the centre


SHAPES = {
    "circle": Shape((), 0, 1.0, 1.0),
    "square": Shape((0, 90, 180, 270), 4, (np.pi / 4) ** 0.5, (np.pi / 2) ** 0.5),
    "triangle": Shape((90, 210, 330), 3, (np.pi / 27**0.5) ** 0.5, 2 * (np.pi / 27**0.5) ** 0.5),
    "star": Shape((-90, -18, 54, 126, 198), 4, (np.pi / 11.7557) ** 0.5, (np.pi / 11.7557) ** 0.5 / np.cos(np.radians(72))),
}
OBJECTS = tuple(itertools.product(COLOURS, SHAPES))

Kind = tuple[str, str]  # (colour, shape)


@dataclass(frozen=True)
class Spec:
    """Describe what a prompt requires: its objects, in their order, and the relation of the first to the second if any."""

    objects: tuple[Kind, ...]
    relation: str | None = None

    @property
    def family(self) -> str:
        """Return the kind of prompt, one of FAMILIES."""
        if len(self.objects) == 1:
            return "single"
        return "relation" if self.relation else "count" if len(set(self.objects)) == 1 else "pair"

    @property
    def prompt(self) -> str:
        """Return the prompt, for instance "two red stars"."""
        if self.family == "count":
            colour, shape = self.objects[0]
            number = next(word for word, n in NUMBERS.items() if n == len(self.objects))
            return f"{number} {colour} {shape}s"
        named = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape in self.objects]
        return f" {self.relation or 'and'} ".join(named)

    @property
    def held_out(self) -> bool:
        """Return whether these objects are left for evaluation: one combination in five, in every order and relation."""
        return zlib.crc32(repr(sorted(self.objects)).encode()) % 5 == 0


_OBJECT = rf"({'|'.join(NUMBERS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})s?"
_PROMPT = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}|and) {_OBJECT})?")


def parse(prompt: str) -> Spec:
    """Read a prompt, for instance "two red stars" or "a red circle left of a blue square".  Raises UserError."""
    match = _PROMPT.fullmatch(" ".join(prompt.lower().split()).rstrip("."))
    if not match:
        raise UserError(
            f"not a prompt of scenes: {prompt!r}; write for instance 'three green triangles' or "
            f"'a red circle left of a blue square' (colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; "
            f"relations {', '.join(RELATIONS)}, and)"
        )
    number, colour, shape, relation, number2, colour2, shape2 = match.groups()
    objects = ((colour, shape),) * NUMBERS[number]
    if relation:
        objects += ((colour2, shape2),) * NUMBERS[number2]
    return Spec(objects, relation if relation in RELATIONS else None)


def all_specs() -> list[Spec]:
    """List every prompt of the world once: 24 single objects, 72 counts, 552 pairs and 2,208 relations."""
    singles = [Spec((kind,)) for kind in OBJECTS]
    counts = [Spec((kind,) * n) for n in (2, 3, 4) for kind in OBJECTS]
    pairs = [Spec(two) for two in itertools.permutations(OBJECTS, 2)]
    relations = [Spec(two, relation) for two in itertools.permutations(OBJECTS, 2) for relation in RELATIONS]
    return singles + counts + pairs + relations


FAMILIES = ("single", "count", "pair", "relation")


def sample_specs(
    n: int, rng: np.random.Generator, held_out: bool, shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
) -> list[Spec]:
    """Draw n prompts, the families in these shares, all from the held-out combinations or all from the others."""
    by_family: dict[str, list[Spec]] = {family: [] for family in FAMILIES}
    for spec in all_specs():
        if spec.held_out == held_out:
            by_family[spec.family].append(spec)
    families = rng.choice(FAMILIES, size=n, p=shares)
    return [by_family[family][rng.integers(len(by_family[family]))] for family in families]


PROMPTS = Path(__file__).parent / "prompts"  # written by make_prompts.py


@dataclass(frozen=True)
class Thing:
    """Describe an object in a picture: its centre and radius in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


Scene = tuple[Thing, ...]
_RADIUS = {1: (7.0, 13.0), 2: (6.0, 10.0), 3: (5.5, 8.0), 4: (5.0, 7.0)}
_GAP = 2.5  # pixels kept free between objects and at the border


def sample_scene(spec: Spec, rng: np.random.Generator) -> Scene:
    """Draw a random layout that meets `spec`: no objects touch, and a relation is within 35 degrees of its axis."""
    shapes = [SHAPES[shape] for _, shape in spec.objects]
    while True:
        radii = rng.uniform(*_RADIUS[len(shapes)], size=len(shapes))
        reach = radii * [shape.reach for shape in shapes]
        centre = rng.uniform(reach + _GAP, SIZE - reach - _GAP, size=(2, len(shapes))).T
        apart = [
            np.hypot(*(centre[i] - centre[j])) >= reach[i] + reach[j] + _GAP
            for i, j in itertools.combinations(range(len(shapes)), 2)
        ]
        if not all(apart):
            continue
        if spec.relation:
            way = centre[0] - centre[1]
            if way @ RELATIONS[spec.relation] < np.cos(np.radians(35)) * np.hypot(*way):
                continue
        return tuple(
            Thing(colour, shape, float(x), float(y), float(r))
            for (colour, shape), (x, y), r in zip(spec.objects, centre, radii, strict=True)
        )
