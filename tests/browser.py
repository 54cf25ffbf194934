"""A headless Chromium for tests of pages; conftest.py gives its fixtures to every test.

`page` is a page at desktop size; `new_page(**options)` opens another for a visitor of its own, with options of Playwright's
`Browser.new_context`: `viewport=PHONE`, `locale="zh-CN"`, `color_scheme="dark"`, `java_script_enabled=False`.
`console_errors` holds what every page complained about: errors of the console and of scripts, and requests to other hosts.
It must be empty when the test ends; a test that provokes an error checks it and clears the list.
`axe(page)` looks for barriers, light and dark.
"""

import shutil
from urllib.parse import urlsplit

import pytest

PHONE = {"width": 390, "height": 844}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NEAR = {"127.0.0.1", "localhost", "::1", None}  # None: file:, data: and blob:


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread: other modules may need their own
def browser():
    """Start a headless Chromium; skip without one."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'neighbor-grpo[test]'")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def console_errors():
    """Return the list that pages fill."""
    return []


@pytest.fixture
def new_page(browser, console_errors):
    """Yield a function that opens a page for another visitor; fail when one of its pages complained."""
    contexts = []

    def listen(page):
        page.on("console", lambda message: message.type == "error" and console_errors.append(message.text))
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        page.on("request", lambda request: urlsplit(request.url).hostname in _NEAR or console_errors.append(request.url))

    def open_page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("page", listen)
        context.set_default_timeout(10_000)
        return context.new_page()

    yield open_page
    for context in contexts:
        context.close()
    assert console_errors == []


@pytest.fixture
def page(new_page):
    """Open a page."""
    return new_page(viewport={"width": 1280, "height": 800})


def axe(page) -> list[str]:
    """List the violations that axe-core calls serious or critical, in light and in dark: scheme, rule, element."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found += [f"{scheme}: {violation['id']}: {node['html']}" for node in violation["nodes"]]
    page.emulate_media(color_scheme=None)
    return found
