"""A judge of words that nothing is trained on: tesseract, a program of its own, as a reward to watch or measure.

    neighbor-grpo evaluate --run RUN --prompts words --measure words_exact --measure benchmarks/judge.py:tesseract --out after

RapidOCR is the reward: a method may learn what RapidOCR alone takes for letters, and then this judge falls behind it.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import to_bytes
from neighbor_grpo.rewards.ocr import quoted

ENLARGED = 4  # times; it is made for scans, whose letters are larger
OPTIONS = ("--psm", "7", "-l", "eng")  # one line of text
SECONDS = 2  # at most for a picture

if shutil.which("tesseract") is None:  # known as the file loads, before any weights
    raise UserError("tesseract is not installed: apt install tesseract-ocr, or brew install tesseract; or leave out the judge")


def tesseract(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
    """Score 1 where tesseract reads exactly the text that the prompt quotes, capitals or small, else 0.

    images [N, 3, H, W] in [0, 1].  A picture without a text to compare has no score.  Raises RuntimeError where the program
    fails, which is no score either.
    """
    texts = [row.get("text") or quoted(prompt) for prompt, row in zip(prompts, metadata, strict=True)]
    return [
        float(_plain(found) == _plain(text)) if text else ValueError("the prompt quotes no text")
        for text, found in zip(texts, read(images), strict=True)
    ]


def read(images: Tensor) -> list[str]:
    """Read pictures [N, 3, H, W] as a line of text each, all in one start of the program.  Raises RuntimeError."""
    pictures = to_bytes(images).permute(0, 2, 3, 1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.png" for n in range(len(pictures))]
        for pixels, file in zip(pictures, files, strict=True):
            picture = Image.fromarray(pixels)
            picture.resize((ENLARGED * picture.width, ENLARGED * picture.height), Image.Resampling.BICUBIC).save(file)
        (Path(folder) / "files.txt").write_text("".join(f"{file}\n" for file in files))
        done = subprocess.run(
            ["tesseract", f"{folder}/files.txt", "-", *OPTIONS],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},  # its threads slow each other down
            timeout=60 + SECONDS * len(files),
        )
    pages = done.stdout.split("\f")
    if done.returncode or len(pages) != len(files):
        said = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"tesseract failed with {done.returncode} after {len(pages)} of {len(files)} pictures: {said[-1]}")
    return pages


def _plain(text: str) -> str:
    return "".join(text.lower().split())
