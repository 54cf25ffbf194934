"""The page of a rater in a browser, as a rater uses it."""

import re

import pytest
from browser import PHONE, axe
from studies import served, study_of

from neighbor_grpo.arena.rating import Rules

KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")
ANSWERS = ("left", "right", "tie", "bad")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("study"), models=2, prompts=50)


def begin(page, url, name):
    page.goto(url)
    page.get_by_label(re.compile("Your name|您的名字")).fill(name)
    page.get_by_role("button", name=re.compile("Begin|开始")).click()
    at_pair(page, 1)


def at_pair(page, number):
    """Wait until a pair and both its pictures are seen."""
    page.wait_for_function(
        "number => document.getElementById('heading').textContent.match(/\\d+/)?.[0] == number"
        " && document.querySelectorAll('#pair:not(.waiting) img').length == 2",
        arg=str(number),
    )


@pytest.mark.parametrize("pairs", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_pairs_by_keyboard_with_a_reload_and_an_undo(page, study, tmp_path, pairs):
    with served(study, tmp_path / "votes.db", Rules(votes=pairs, repeat=0)) as arena:
        begin(page, arena.url, "Ada")
        for n in range(pairs):
            at_pair(page, n + 1)
            if n == pairs // 3:
                page.reload()
                at_pair(page, n + 1)
            if n == pairs // 2:
                page.keyboard.press("u")
                at_pair(page, n)
                assert len(arena.store.votes()) == n - 1
                page.keyboard.press(KEYS[(n - 1) % 4])
                at_pair(page, n + 1)
            page.keyboard.press(KEYS[n % 4])
        page.get_by_text("Your votes are saved").wait_for()
        votes = arena.store.votes()
    assert [vote.answer for vote in votes] == [ANSWERS[n % 4] for n in range(pairs)]
    assert len({vote.prompt for vote in votes}) == pairs and {vote.rater for vote in votes} == {"Ada"}
    assert {vote.left for vote in votes} == {"model-0", "model-1"}


def test_no_name_of_a_model_reaches_the_browser(page, study, tmp_path):
    with served(study, tmp_path / "votes.db") as arena:
        seen = []
        page.on("response", lambda reply: seen.append((reply.url, str(reply.headers), reply.body())))
        begin(page, arena.url, "Ada")
        page.keyboard.press("ArrowLeft")
        at_pair(page, 2)
        page.wait_for_load_state("networkidle")
    pictures = [url for url, _, _ in seen if "/picture/" in url]
    assert len(pictures) == len(set(pictures)) == 4
    assert not [url for url, headers, body in seen if re.search(r"model|seed|\.png", f"{url}{headers}") or b"model-" in body]
    assert "<b>" in page.locator("#prompt").text_content()  # shown, not obeyed


def test_two_raters_at_once_on_a_phone_and_in_chinese(new_page, study, tmp_path):
    with served(study, tmp_path / "votes.db", Rules(votes=3, repeat=0)) as arena:
        ada, bob = new_page(viewport=PHONE, has_touch=True), new_page(locale="zh-CN")
        begin(ada, arena.url, "Ada")
        begin(bob, arena.url, "小明")
        assert bob.locator("html").get_attribute("lang") == "zh-CN"
        assert ada.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for n in range(3):
            at_pair(ada, n + 1)
            ada.wait_for_timeout(500)  # two taps in a third of a second are a double tap, which is one vote
            ada.get_by_role("button", name="Left", exact=True).tap()
            at_pair(bob, n + 1)
            bob.get_by_role("button", name="都不好").click()
        ada.get_by_text("Your votes are saved").wait_for()
        bob.get_by_text("您的投票已保存").wait_for()
        votes = arena.store.votes()
    assert sorted((vote.rater, vote.answer) for vote in votes) == [("Ada", "left")] * 3 + [("小明", "bad")] * 3
    assert len({vote.prompt for vote in votes}) == 6  # balanced: the raters were given different pairs


def test_several_questions_are_answered_in_turn(page, tmp_path):
    study = study_of(tmp_path, prompts=2, questions=["looks"])
    with served(study, tmp_path / "votes.db", Rules(repeat=0)) as arena:
        begin(page, arena.url, "Ada")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("u")  # takes back what is not sent yet
        page.keyboard.press("ArrowUp")
        page.locator("[data-question=looks] [data-answer=right]").click()
        at_pair(page, 2)
        assert [(vote.question, vote.answer) for vote in arena.store.votes()] == [("looks", "right"), ("overall", "tie")]


def test_a_vote_is_sent_again_until_it_is_stored(page, study, tmp_path, console_errors):
    with served(study, tmp_path / "votes.db") as arena:
        begin(page, arena.url, "Ada")
        lost = iter([True])

        def lose_reply(route):
            if next(lost, False):
                route.fetch()  # the server stores it
                route.abort()
            else:
                route.continue_()

        page.route("**/vote", lose_reply)
        page.keyboard.press("ArrowLeft")
        at_pair(page, 2)
        assert len(arena.store.votes()) == 1
    assert console_errors.pop().startswith("Failed to load resource")


def test_nobody_votes_on_what_is_not_seen_yet(page, study, tmp_path):
    with served(study, tmp_path / "votes.db") as arena:
        begin(page, arena.url, "Ada")
        held = []
        page.route("**/picture/**", lambda route: held.append(route))
        page.locator("[data-answer=left]").dblclick()  # one vote
        page.get_by_role("heading", name="Pair 2 of").wait_for()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('#pair.waiting')")
        for route in held:
            route.continue_()
        at_pair(page, 2)
        assert [vote.answer for vote in arena.store.votes()] == ["left"]
        page.keyboard.press("ArrowRight")
        at_pair(page, 2)


@pytest.mark.parametrize("viewport", [PHONE, pytest.param({"width": 1280, "height": 800}, marks=pytest.mark.slow)])
def test_no_barriers(new_page, viewport, study, tmp_path):
    with served(study, tmp_path / "votes.db", Rules(votes=1, repeat=0)) as arena:
        page = new_page(viewport=viewport)
        page.goto(arena.url)
        assert axe(page) == []
        begin(page, arena.url, "Ada")
        assert axe(page) == []
        page.keyboard.press("z")
        assert axe(page) == []
        page.keyboard.press("ArrowLeft")
        page.get_by_text("Your votes are saved").wait_for()
        assert axe(page) == []
