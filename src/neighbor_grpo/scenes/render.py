"""Draws scenes, and the ideal shapes that the verifier compares with, by distance to the shape's outline."""

import numpy as np

from neighbor_grpo.scenes.world import BACKGROUND, COLOURS, SHAPES, SIZE, Scene

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5  # pixel centres


def outline_distance(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside (exact but near corners).  [SIZE, SIZE]"""
    dx, dy = _X - x, _Y - y
    form = SHAPES[shape]
    if not form.normals:
        return np.hypot(dx, dy) - radius
    angles = np.radians(form.normals, dtype=np.float32)[:, None, None]
    lines = dx * np.cos(angles) + dy * np.sin(angles) - form.inradius * radius
    return np.sort(lines, axis=0)[form.inside - 1]  # inside k of n lines: the k-th smallest distance decides


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Share of each pixel that the shape covers, in [0, 1].  [SIZE, SIZE]"""
    return np.clip(0.5 - outline_distance(shape, x, y, radius), 0, 1)


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """Picture of a scene in [0, 1].  [3, SIZE, SIZE] float32

    With `rng`, background and objects get a small random shade each, so that the data has texture to be learned.
    """

    def shade(colour: tuple[float, ...]) -> np.ndarray:
        jitter = rng.normal(0, 0.015, 3) if rng else np.zeros(3)
        return np.clip(np.asarray(colour) + jitter, 0, 1).astype(np.float32)[:, None, None]

    picture = shade(BACKGROUND) * np.ones((1, SIZE, SIZE), np.float32)
    for thing in scene:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)
        picture = picture * (1 - alpha) + shade(COLOURS[thing.colour]) * alpha
    return picture
