"""Does a scorer make sense?  Two pictures, each with its own prompt and with the other's, before a run is spent on it."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neighbor_grpo.rewards.learned.images import squash
from neighbor_grpo.rewards.score import Reward, score
from neighbor_grpo.scenes.render import render
from neighbor_grpo.scenes.world import SIZE, parse, sample_scene

PROMPTS = ("a red circle left of a blue square", "three green triangles")
RANGES = {  # where the scores of any two pictures may lie, and where those of generated pictures usually do
    "hpsv2.1": ((0.0, 0.6), (0.2, 0.35)),
    "pickscore": ((5.0, 35.0), (17.0, 24.0)),
    "clip": ((-0.1, 0.8), (0.2, 0.45)),
    "imagereward": ((-3.5, 3.5), (-2.3, 2.0)),
    "aesthetic": ((0.0, 11.0), (4.0, 7.0)),
    "unified_reward": ((1.0, 5.0), (2.0, 4.5)),
    "ocr": ((0.0, 1.0), (0.0, 1.0)),
    "geneval": ((0.0, 1.0), (0.0, 1.0)),
}
_ALIGNED = RANGES.keys() - {"aesthetic", "geneval"}  # those that judge how well a picture fits its prompt
WORDS = ("HELLO", "GARDEN")  # for those that read


def pictures(side: int = 512) -> Tensor:
    """One picture of each prompt, by the renderer of the bundled world, always the same.  [2, 3, side, side]"""
    rng = np.random.default_rng(0)
    drawn = np.stack([render(sample_scene(parse(prompt), rng)) for prompt in PROMPTS])
    return squash(torch.from_numpy(drawn), side)


def signs(side: int = 512) -> Tensor:
    """Two pictures with a word each.  [2, 3, side, side]"""
    drawn = []
    for word in WORDS:
        page = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(page).text((side / 2, side / 2), word, "black", ImageFont.load_default(side // 7), anchor="mm")
        drawn.append(torch.from_numpy(np.array(page)).permute(2, 0, 1) / 255)
    return torch.stack(drawn)


def _task(name: str) -> tuple[Tensor, tuple[str, str], dict]:
    """Two pictures, their prompts, and the metadata that the reward needs."""
    if name == "ocr":
        return signs(), tuple(f'a sign that says "{word}"' for word in WORDS), {}
    if name == "geneval":  # that there is no bicycle on either picture is as much as a drawing can tell
        return pictures(), PROMPTS, {"tag": "single_object", "include": [{"class": "bicycle", "count": 1}]}
    return pictures(SIZE) if name.startswith("scenes") else pictures(), PROMPTS, {}  # whose verifier reads no other size


def check(name: str, reward: Reward) -> tuple[list[str], bool]:
    """Lines to print, and whether the numbers make sense: finite, not all equal, and as the scorer's kind demands.

    A scorer with known numbers is held to its range, and one that judges the fit to a prompt must score each picture higher
    with its own prompt than with the other's.
    """
    images, prompts, known = _task(name)
    scores = score(reward, images.repeat(2, 1, 1, 1), [p for p in prompts for _ in images], [known] * 4, group=2)
    table = scores.values.view(2, 2)  # [prompt, picture]
    wide = max(map(len, prompts))
    lines = [f"{name}: two pictures, each with its own prompt and with the other's"]
    lines += [f"{'':{wide}}  {'picture 1':>10}  {'picture 2':>10}"]
    lines += [f"{prompt:{wide}}  {a:10.4f}  {b:10.4f}" for prompt, (a, b) in zip(prompts, table.tolist(), strict=True)]
    faults = [failure.reason for failure in scores.failures]
    if name != "geneval" and (table == table[0, 0]).all():
        faults.append("all scores are equal")
    if name in RANGES:
        (low, high), (usual_low, usual_high) = RANGES[name]
        lines.append(f"usually {usual_low:g} to {usual_high:g} for generated pictures, possible {low:g} to {high:g}")
        if ((table < low) | (table > high)).any():
            faults.append("out of range: are these the weights of this scorer?")
    if name in _ALIGNED:
        for n in (0, 1):
            if table[n, n] <= table[1 - n, n]:
                faults.append(f"picture {n + 1} fits the other prompt as well or better")
    lines += [f"wrong: {fault}" for fault in dict.fromkeys(faults)] or ["the numbers make sense"]
    return lines, not faults
