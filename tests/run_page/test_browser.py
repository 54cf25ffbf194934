"""The page of a run and its live form, as a reader sees them in Chromium."""

import threading
from contextlib import contextmanager

import pytest
from browser import PHONE, axe
from made_runs import PROMPTS, add_group, add_samples, line, make_run

from neighbor_grpo.files.listening import listen, url_of
from neighbor_grpo.run import files, report, serving
from neighbor_grpo.run.watch import Watch, application

LINES = [line(n, n % 5 == 0) for n in range(11)]
CURVES = "#curves > div"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("browser") / "mine", LINES, "optimizer.lr=3e-4", "reward.watch=[diversity]")
    add_samples(run, 0, "gray"), add_samples(run, 10, "maroon")
    add_group(run, 1, [0.1, None, 0.3], [-1.0, 0.0, 2.0])
    report.write(run)
    return run


@contextmanager
def watching(*runs):
    """Serve runs in a thread, and yield the address."""
    listening = listen("127.0.0.1", 0)
    watch = Watch(runs)
    server = serving.Server(serving.Guard(application(watch)), watch.end)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"{url_of('127.0.0.1', listening)}/"
    server.should_exit = True
    thread.join()


def test_nothing_bars_a_reader(page, run):
    page.goto((run / "report.html").as_uri())
    assert axe(page) == []
    page.locator("summary").first.click()
    assert axe(page) == []


def test_the_slider_is_moved_by_keys_and_by_the_one_for_all(page, run):
    page.goto((run / "report.html").as_uri())
    stack = page.locator(".stack").first
    shown = "e => getComputedStyle(e.querySelectorAll('img')[1]).clipPath"
    assert "50%" in stack.evaluate(shown)
    stack.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert "51%" in stack.evaluate(shown)
    page.keyboard.press("End")
    assert "100%" in stack.evaluate(shown)
    assert stack.locator("input").get_attribute("aria-valuetext").startswith("0 %")
    page.locator(".all-sliders input").focus()
    page.keyboard.press("Home")
    assert all("0px 0px 0%" in one.evaluate(shown) for one in page.locator(".stack").all())


def test_the_slider_is_dragged(page, run):
    page.goto((run / "report.html").as_uri())
    stack = page.locator(".stack").first
    stack.scroll_into_view_if_needed()
    box = stack.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    at = float(page.locator(".stack input").first.input_value())
    assert 20 < at < 30


def test_the_search_leaves_the_prompts_with_all_words(page, run):
    page.goto((run / "report.html").as_uri())
    prompts = page.locator(".prompt")
    page.get_by_label("Search the prompts").fill("SQUARE more")
    assert [one.is_visible() for one in prompts.all()] == [False, False, True]
    assert page.locator(".search output").inner_text() == "1 of 3 prompts"
    page.get_by_label("Search the prompts").fill("")
    assert all(one.is_visible() for one in prompts.all()) and prompts.count() == len(PROMPTS)


def test_a_curve_is_hovered_and_zoomed_with_all_others(page, run):
    page.goto((run / "report.html").as_uri())
    first = page.locator(f"{CURVES} .u-over").first
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    middle = box["y"] + box["height"] / 2

    def values(chart):
        return page.locator(CURVES).nth(chart).locator(".u-value").all_inner_texts()

    page.mouse.move(box["x"] + box["width"] * 0.501, middle)
    assert values(0) == ["5", "0.7143", "0.7643", "0.6643", "0.15"]  # 5 / 7 with its band in training, 0.1 + 5 / 100
    assert values(1) == ["5", "0.45"]  # the diversity at the same iteration
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, middle, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + 2, middle)
    assert values(0)[0] == values(1)[0] == "5"  # where both begin now
    page.mouse.dblclick(box["x"] + box["width"] / 2, middle)
    page.mouse.move(box["x"] + 2, middle)
    assert values(0)[0] == values(1)[0] == "0"


def test_a_phone_and_a_printer_show_all_of_it(new_page, run):
    page = new_page(viewport=PHONE)
    page.goto((run / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.emulate_media(media="print")
    boxes = [image.bounding_box() for image in page.locator(".stack").first.locator("img").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1 or boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] + 1


def test_without_scripts_the_pictures_stand_side_by_side(new_page, run):
    page = new_page(java_script_enabled=False)
    page.goto((run / "report.html").as_uri())
    assert page.get_by_text("The curves need JavaScript").is_visible()
    boxes = [image.bounding_box() for image in page.locator(".stack").first.locator("img").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_live_page_grows_as_lines_are_appended(page, new_page, tmp_path, console_errors):
    run = make_run(tmp_path / "live", LINES[:3], "reward.watch=[diversity]", ended=None)
    label = f"{CURVES} canvas[aria-label^='scenes against iteration']"
    with watching(run) as url:
        other = new_page(color_scheme="dark")
        for one in (page, other):
            one.goto(url)
            one.wait_for_selector(f"{label}[aria-label*='to 0.2857']")
        for text in LINES[3:6]:
            files.record(run, text)
        add_samples(run, 0, "gray"), add_samples(run, 5, "navy")
        for one in (page, other):
            one.wait_for_selector(f"{label}[aria-label*='to 0.7143'][aria-label*='evaluation from 0.1 to 0.15']")
            one.get_by_text("5 of 10 iterations").wait_for()
            one.wait_for_selector(".stack")
        page.get_by_label("Search the prompts").fill("stars")
        add_samples(run, 6, "maroon")
        page.get_by_text("after 6 iterations").nth(2).wait_for(state="attached")
        assert page.get_by_label("Search the prompts").input_value() == "stars"
        assert page.locator(".prompt:visible").count() == 1
        files.rewind(run, 4)
        page.wait_for_selector(f"{label}[aria-label*='to 0.5714']")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        assert axe(page) == []
        page.close(), other.close()
    console_errors[:] = [error for error in console_errors if "404" not in error]  # a picture may be rewound as it is asked for


def test_two_runs_lie_in_the_same_curves(page, tmp_path):
    runs = [make_run(tmp_path / name, [line(n, n % 2 == 0, **more) for n in range(4)]) for name, more in (("a", {}), ("b", {}))]
    with watching(*runs) as url:
        page.goto(url)
        canvas = page.locator(f"{CURVES} canvas").first
        canvas.wait_for()
        label = canvas.get_attribute("aria-label")
        assert "a training" in label and "b training" in label and "a evaluation" in label and "b evaluation" in label
        page.locator("details.run > summary").nth(1).click()
        page.locator("#run1-against canvas").first.wait_for()
        assert axe(page) == []
        files.record(runs[1], line(4, loss=1.0))
        page.wait_for_selector(f"{CURVES} canvas[aria-label*='b training from 0.1429 to 0.5714']")
        assert "a training from 0.1429 to 0.4286" in canvas.get_attribute("aria-label")
        page.wait_for_selector(f"{CURVES} canvas[aria-label^='loss against iteration: b from 1 to 1']")
        page.close()


def test_a_server_that_ends_is_told(page, console_errors, run):
    with watching(run) as url:
        page.goto(url)
        page.get_by_text("This page is live").wait_for()
    page.get_by_text("The connection is lost").wait_for()
    page.close()
    console_errors[:] = [one for one in console_errors if "net::ERR" not in one]
