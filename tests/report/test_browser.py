"""The page in a real browser: nothing complained of, pictures there, a click and a key copy, dark, on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shears.report.write import write_report
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, Browser, chromium
from tests.report.made import records, write_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
PLACE = "(e => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })"
CHOSEN = "document.querySelector('.chosen').closest('g')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run", records(prompt=HOSTILE * 3)))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_is_there_and_nothing_is_complained_of(
    browser: Browser, report: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.show(report, size, scheme)
    shown = browser.run("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height)")
    assert len(shown) == 7
    assert min(shown) > 20
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    paper = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) is (scheme == "dark")
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.errors == []


def copied(browser: Browser) -> str:
    """What lies on the clipboard once the page says that it copied."""
    browser.until("document.getElementById('copied').textContent.startsWith('Copied')")
    return str(browser.run("navigator.clipboard.readText()"))


def test_a_click_copies_the_command_that_exports_a_configuration(browser: Browser, report: Path) -> None:
    browser("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.show(report)
    browser.run(f"{CHOSEN}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.click(*browser.run(f"{PLACE}({CHOSEN})"))
    assert copied(browser).endswith("/search/result.json:3")
    said = browser.run("document.querySelector('output.said').textContent")
    assert said.startswith("Number 3, chosen: loss 0.4")


def test_the_keyboard_reaches_the_front_and_copies(browser: Browser, report: Path) -> None:
    browser("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.show(report)
    reached = list[str]()
    for _ in range(60):
        browser.press("Tab", 9)
        reached.append(
            browser.run("document.activeElement.getAttribute('aria-label') || document.activeElement.tagName")
        )
        if reached[-1].startswith("Number 2, front"):
            break
    assert reached[0] == "A"  # the link that skips to the figures
    assert reached[-1].startswith("Number 2, front")
    assert browser.run("document.querySelector('output.said').textContent") == reached[-1]
    browser.press("Enter", 13, "\r")
    assert copied(browser).endswith("/search/result.json:2")


def test_the_table_behind_a_picture_opens(browser: Browser, report: Path) -> None:
    browser.show(report)
    summary = "document.querySelector('#layers summary')"
    browser.run(f"{summary}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    assert not browser.run("document.querySelector('#layers table').checkVisibility()")
    browser.click(*browser.run(f"{PLACE}({summary})"))
    browser.until("document.querySelector('#layers table').checkVisibility()")


def test_every_control_has_a_name(browser: Browser, report: Path) -> None:
    browser.show(report)
    tree = browser("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "link", "region", "navigation", "DisclosureTriangle")
    named = [node for node in tree if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert len(named) > 10
    assert all(node.get("name", {}).get("value") for node in named)
