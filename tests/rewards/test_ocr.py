import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards import ocr
from neighbor_grpo.rewards.ocr import Ocr, quoted, text_score


def picture(text, size=(240, 240), background=(250, 240, 200)):
    image = Image.new("RGB", size, background)
    ImageDraw.Draw(image).multiline_text((16, 24), text, fill=(20, 20, 120), font=ImageFont.load_default(44))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def distance(a, b):
    """Levenshtein's, by its recursion over prefixes."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i, *row], row
        for j, y in enumerate(b, 1):
            row[0][j] = min(row[1][j - 1] + (x != y), row[1][j] + 1, row[0][j - 1] + 1)
        row = row[0][: len(b) + 1]
    return row[-1]


@pytest.mark.parametrize(
    ("target", "read", "score"),
    [
        ("Hello World", "hello world", 1),
        ("Hello", "say HELLO there", 1),
        ("Open Soon", "OpenSoon", 1),
        ("open", "", 0),
        ("open", "oqen", 3 / 4),
        ("open", "opn", 3 / 4),
        ("kitten", "sitting", 1 - 3 / 6),
        ("cat", "zzzzzzzzzz", 0),
        ("abcdefgh", "abcd", 1 / 2),
        ("abc", "bca", 1 - 2 / 3),
    ],
)
def test_text_score_by_hand(target, read, score):
    assert text_score(target, read) == pytest.approx(score)


def test_text_score_against_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(100):
        target, read = ("".join(rng.choice(list("abc"), n)) for n in rng.integers(1, 9, 2))
        expected = 1.0 if target in read else 1 - min(distance(target, read), len(target)) / len(target)
        assert text_score(target, read) == pytest.approx(expected), (target, read)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that reads "Open Late"', "Open Late"),
        ("a sign “Open” and “Closed”", "Open"),
        ('"one" and "two"', "one"),
        ("a card saying 'Don't stop'", "Don't stop"),
        ("a mug with ‘No. 1’ on it", "No. 1"),
        ("the dogs' bowl and the cats' toy", None),
        ("it's the neighbor's sign", None),
        ("it's the dogs' bowl", None),
        ("the dog's \"Bone's\" bowl", "Bone's"),
        ("a blank sign", None),
        ('a 5" screen', None),
        ('a "" sign', None),
        ('a " " sign', None),
    ],
)
def test_quoted(prompt, text):
    assert quoted(prompt) == text


def test_reads_pictures():
    images = torch.stack([picture("Open\nSoon"), picture("GRPO 42"), picture(""), picture("")])
    prompts = ["“open soon” on a wall", 'a plate "GRPO 47"', 'a sign "Open"', "a sign"]
    scores = Ocr()(images, prompts, [{}] * 4)
    assert scores[:3] == [1.0, pytest.approx(5 / 6), 0.0]
    assert isinstance(scores[3], ValueError) and "quotes" in str(scores[3])


def test_colours_arrive_in_the_order_that_the_engine_expects():
    seen = []
    reward = Ocr()
    reward.__dict__["engine"] = lambda pixels: seen.append(pixels) or type("Lines", (), {"txts": ("a", "b")})
    assert reward.read(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6)) == ["ab"]
    assert seen[0].shape == (4, 6, 3) and seen[0][0, 0].tolist() == [0, 128, 255]


def test_an_engine_that_fails_on_one_picture_costs_no_other_its_score():
    def engine(pixels):
        if pixels.max() == 0:
            raise RuntimeError("black")
        return type("Lines", (), {"txts": ("Open",)})

    reward = Ocr()
    reward.__dict__["engine"] = engine
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.ones(3, 8, 8)])
    failed, score, other = reward(images, ['"open"'] * 3, [{}, {}, {"text": "Oxxn"}])  # the metadata's text comes first
    assert isinstance(failed, RuntimeError) and score == 1.0 and other == 0.5


@pytest.mark.parametrize("module", ["rapidocr", "onnxruntime", "rapidfuzz.distance"])
def test_a_missing_engine_says_what_to_install(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    ocr._engine.cache_clear()
    with pytest.raises(UserError, match=r"neighbor-grpo\[ocr\]") as error:
        Ocr().load()
    assert "\n" not in str(error.value)
