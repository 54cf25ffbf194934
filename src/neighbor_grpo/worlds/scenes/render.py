"""The renderer: scenes, and the ideal shapes that the verifier compares with, by the distance to a shape's outline."""

import numpy as np

from neighbor_grpo.worlds.scenes.world import BACKGROUND, COLOURS, SHAPES, SIZE, Scene

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5  # pixel centres


def outline_distance(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Compute the signed distance [SIZE, SIZE] to the outline in pixels, negative inside (exact except near corners)."""
    dx, dy = _X - x, _Y - y
    form = SHAPES[shape]
    if not form.normals:
        return np.hypot(dx, dy) - radius
    angles = np.radians(form.normals, dtype=np.float32)[:, None, None]
    lines = dx * np.cos(angles) + dy * np.sin(angles) - form.inradius * radius
    return np.sort(lines, axis=0)[form.inside - 1]  # inside k of n lines: the k-th smallest distance decides


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Compute the share of each pixel [SIZE, SIZE] that the shape covers, in [0, 1]."""
    return np.clip(0.5 - outline_distance(shape, x, y, radius), 0, 1)


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw a scene as a picture [3, SIZE, SIZE] in [0, 1], float32.

    With `rng`, background and objects each get a small random shade, which gives a model something to learn.
    """

    def shade(colour: tuple[float, ...]) -> np.ndarray:
        jitter = rng.normal(0, 0.015, 3) if rng else np.zeros(3)
        return np.clip(np.asarray(colour) + jitter, 0, 1).astype(np.float32)[:, None, None]

    picture = shade(BACKGROUND) * np.ones((1, SIZE, SIZE), np.float32)
    for thing in scene:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)
        picture = picture * (1 - alpha) + shade(COLOURS[thing.colour]) * alpha
    return picture
