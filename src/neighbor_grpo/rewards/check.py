"""A test of a scorer before a run uses it: two pictures, each with its own prompt and with the other's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neighbor_grpo.rewards.learned.images import squash
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer
from neighbor_grpo.worlds.scenes.render import render
from neighbor_grpo.worlds.scenes.world import SIZE, parse, sample_scene

PROMPTS = ("a red circle left of a blue square", "three green triangles")
WORDS = ("HELLO", "GARDEN")  # on the pictures for `ocr`
RANGES = {  # (possible scores, usual scores of generated pictures)
    "hpsv2.1": ((0.0, 0.6), (0.2, 0.35)),
    "pickscore": ((5.0, 35.0), (17.0, 24.0)),
    "clip": ((-0.1, 0.8), (0.2, 0.45)),
    "imagereward": ((-3.5, 3.5), (-2.3, 2.0)),
    "aesthetic": ((0.0, 11.0), (4.0, 7.0)),
    "unified_reward": ((1.0, 5.0), (2.0, 4.5)),
    "ocr": ((0.0, 1.0), (0.0, 1.0)),
    "geneval": ((0.0, 1.0), (0.0, 1.0)),
}
_ALIGNED = RANGES.keys() - {"aesthetic", "geneval"}  # they score how well a picture fits its prompt
_FRAMES = 8


@dataclass(frozen=True)
class Report:
    """Hold the result of `check`."""

    lines: tuple[str, ...]  # for the terminal
    faults: tuple[str, ...]  # what is wrong with the numbers

    @property
    def passed(self) -> bool:
        """Return whether the numbers make sense."""
        return not self.faults


def pictures(side: int = 512) -> Tensor:
    """Render one picture [3, side, side] of each prompt, always the same."""
    rng = np.random.default_rng(0)
    drawn = np.stack([render(sample_scene(parse(prompt), rng)) for prompt in PROMPTS])
    return squash(torch.from_numpy(drawn), side)


def signs(side: int = 512) -> Tensor:
    """Draw two pictures [3, side, side] with a word each."""
    drawn = []
    for word in WORDS:
        page = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(page).text((side / 2, side / 2), word, "black", ImageFont.load_default(side // 7), anchor="mm")
        drawn.append(torch.from_numpy(np.array(page)).permute(2, 0, 1) / 255)
    return torch.stack(drawn)


def _task(scorer: Scorer) -> tuple[Tensor, tuple[str, ...], dict[str, Any]]:
    """Return two pictures or videos, their prompts, and the metadata that the reward needs."""
    if scorer.name == "ocr":
        return signs(), tuple(f'a sign that says "{word}"' for word in WORDS), {}
    if scorer.name == "geneval":  # a detector of photographs finds nothing in a drawing
        return pictures(), PROMPTS, {"tag": "single_object", "include": [{"class": "bicycle", "count": 1}]}
    images = pictures(SIZE) if scorer.name.startswith("scenes") else pictures()  # the verifier reads no other size
    if scorer.of_videos:  # the picture moves to the right
        images = torch.stack([images.roll(8 * n, dims=-1) for n in range(_FRAMES)], 1)
    return images, PROMPTS, {}


def check(scorer: Scorer) -> Report:
    """Score both pictures with both prompts and check the numbers.

    They must be finite and not all equal.  Scores of a known reward must lie in its range, and a reward that measures how
    well a picture fits its prompt must score each picture higher with its own prompt than with the other's.
    """
    images, prompts, metadata = _task(scorer)
    both = images.repeat(2, *(1 for _ in images.shape[1:]))
    scores = score(scorer, both, [prompt for prompt in prompts for _ in images], [metadata] * 4, group=2)
    table = scores.values.view(2, 2)  # [prompt, picture]
    faults = [failure.reason for failure in scores.failures] + _faults(scorer.name, table)
    width = max(map(len, prompts))
    lines = [f"{scorer.name}: two pictures, each with its own prompt and with the other's"]
    lines += [f"{'':{width}}  {'picture 1':>10}  {'picture 2':>10}"]
    lines += [f"{prompt:{width}}  {a:10.4f}  {b:10.4f}" for prompt, (a, b) in zip(prompts, table.tolist(), strict=True)]
    if scorer.name in RANGES:
        (low, high), (usual_low, usual_high) = RANGES[scorer.name]
        lines.append(f"usually {usual_low:g} to {usual_high:g} for generated pictures, possible {low:g} to {high:g}")
    lines += [f"wrong: {fault}" for fault in dict.fromkeys(faults)] or ["the numbers make sense"]
    return Report(tuple(lines), tuple(faults))


def _faults(name: str, table: Tensor) -> list[str]:
    """Find what is wrong with the scores [prompt, picture] of a reward."""
    faults = []
    if name != "geneval" and (table == table[0, 0]).all():
        faults.append("all scores are equal")
    if name in RANGES:
        (low, high), _ = RANGES[name]
        if ((table < low) | (table > high)).any():
            faults.append("out of range: are these the weights of this scorer?")
    if name in _ALIGNED:
        faults += [f"picture {n + 1} fits the other prompt as well or better" for n in (0, 1) if table[n, n] <= table[1 - n, n]]
    return faults
