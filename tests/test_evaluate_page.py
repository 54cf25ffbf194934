"""The page of an evaluation, in a browser: pictures as files, values, order, a slider against another evaluation."""

import json
import re
import shlex
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import PHONE, axe
from PIL import Image
from test_cli import run

from neighbor_grpo.commands.main import parser

PROMPTS = ["a red circle", "two <b>blue</b> stars", "a green square"]
REWARD = "def brightness(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n"
SHADES = {"first": [10, 20, 90, 80, 50, 60], "second": [40, 30, 91, 79, 52, 62]}  # two pictures of each prompt


@pytest.fixture
def places(capsys, tmp_path):
    """Evaluations of grey pictures, the second against the first; names of files that an address must quote."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "reward.py").write_text(REWARD)
    for name, shades in SHADES.items():
        (tmp_path / f"{name} 100%").mkdir()
        for n, shade in enumerate(shades):
            Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / f"{name} 100%" / f"a#{n}?.png")
        options = ["--images", tmp_path / f"{name} 100%", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / name]
        options += ["--measure", f"{tmp_path / 'reward.py'}:brightness", "--measure", "jpeg_size"]
        more = ["--against", tmp_path / "first"] if name == "second" else []
        assert run(capsys, "evaluate", *options, *more)[0] == 0
    return tmp_path / "first", tmp_path / "second"


def test_the_page_shows_both_pictures_their_values_and_the_worst_first(places, page):
    second = places[1]
    page.goto((second / "gallery.html").as_uri())
    assert page.locator(".prompt h3").all_inner_texts() == PROMPTS
    pairs = [[picture.evaluate("i => i.src") for picture in pair.locator("img").all()] for pair in page.locator(".pair").all()]
    files = [[f"{place} 100%/a#{n}?.png" for place in places] for n in range(6)]
    assert [[unquote(src.removeprefix("file://")) for src in pair] for pair in pairs] == files
    for place in page.locator(".prompt").all():
        place.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(one => one.complete && one.naturalWidth === 32)")
    captions = page.locator(".pair figcaption").all_inner_texts()
    for caption, was, now in zip(captions, SHADES["first"], SHADES["second"], strict=True):
        value, change = map(float, re.search(r"brightness ([\d.]+) \(([-+\d.]+)\)", caption).groups())
        assert value == pytest.approx(now / 255, abs=1e-4) and change == pytest.approx((now - was) / 255, rel=0.05)
    measure = next(name for name in json.loads((second / "result.json").read_text())["values"] if "brightness" in name)
    order, highest = page.locator("#order select"), page.locator("#order input")

    def shown():
        return [PROMPTS.index(text) for text in page.locator(".prompt h3").all_inner_texts()]

    order.select_option(measure)  # means 35, 85, 57
    assert shown() == [0, 2, 1]
    highest.check()
    assert shown() == [1, 2, 0]
    order.select_option(f"change of {measure}")  # +20, 0, +2
    assert shown() == [0, 2, 1]
    order.select_option("")
    assert shown() == [0, 1, 2]
    assert axe(page) == []


def test_an_evaluation_alone_has_plain_pictures_and_fits_a_phone(places, new_page):
    page = new_page(viewport=PHONE)
    page.goto((places[0] / "gallery.html").as_uri())
    assert page.locator("figure img").count() == 6 and page.locator(".pair").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("table").first.inner_text().split()[:3] == ["measure", "mean", "95"]


def test_the_table_has_the_numbers_of_the_result_and_the_command_its_options(places):
    text, result = (places[1] / "gallery.html").read_text(), json.loads((places[1] / "result.json").read_text())
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", text)]
    for name, value in result["values"].items():
        row = cells[cells.index(name) :]
        pair = result["against"]["measures"][name]
        assert row[1] == f"{value:.4g}" and row[3] == f"{pair['difference']:+.4g}"
    command = shlex.split(unescape(re.search(r'class="command" tabindex="0">(.*?)</pre>', text)[1]))
    known = vars(parser().parse_args(command[1:]))
    assert known["images"] == Path(f"{places[1]} 100%") and known["against"] == places[0] and known["out"] is None
    assert known["measure"] == list(result["values"]) and known["prompts"] == str(places[0].parent / "prompts.txt")
    assert "--limit" not in command and "--max-failed" not in command


def test_an_evaluation_of_an_older_release_is_compared_without_its_pictures(capsys, places):
    (places[0] / "pictures.json").unlink()
    text = (places[1] / "gallery.html").read_text()
    command = shlex.split(unescape(re.search(r'class="command" tabindex="0">(.*?)</pre>', text)[1]))
    assert run(capsys, *command[1:], "--out", places[1])[0] == 0
    text = (places[1] / "gallery.html").read_text()
    assert 'class="pair"' not in text and text.count("<img") == 6 and "change of" in text
