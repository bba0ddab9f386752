"""The page in a real browser: no errors, every picture, copying by click and key, dark mode, a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shears.report.charts import DARK, PALE
from shears.report.page import write_report
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, Browser, chromium
from tests.report.made import crowded, records, write_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
PLACE = "(e => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })"
RECTANGLE = "(e => { const r = e.getBoundingClientRect(); return [r.x + scrollX, r.y + scrollY, r.width, r.height] })"
COLOURS = """(() => {
  document.querySelectorAll('details').forEach(e => { e.open = true });
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => [0, 1, 2].map(i => (top[3] ?? 1) * top[i] + (1 - (top[3] ?? 1)) * below[i]);
  const ground = (e) => e ? over(parse(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255];
  const texts = [...document.querySelectorAll('main *:not(title), header *, footer')].filter(
    e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return texts.map(e => {
    const style = getComputedStyle(e), box = e.tagName === 'text' && e.parentElement.querySelector(':scope > rect');
    let below = ground(e.closest('div, p, figure, li, article, section') || document.body);
    if (e.closest('.cells') && box) {
      const cell = getComputedStyle(box);
      below = over([...parse(cell.fill).slice(0, 3), Number(cell.fillOpacity)], below);
    }
    return [e.textContent, over(parse(e.tagName === 'text' ? style.fill : style.color), below), below];
  });
})()"""
CHOSEN = "document.querySelector('.chosen').closest('g')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run", records(prompt=HOSTILE * 3)))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run", crowded()))


def contrast(one: list[float], other: list[float]) -> float:
    """Return the contrast ratio of two colours, R, G and B from 0 to 255 (WCAG 2.2, by relative luminance)."""

    def luminance(colour: list[float]) -> float:
        shares = [value / 255 for value in colour]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_is_shown_without_errors(
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
    """Return the content of the clipboard once the page says that it copied."""
    browser.until("document.getElementById('copied').textContent.startsWith('Copied')")
    return str(browser.run("navigator.clipboard.readText()"))


def test_a_click_copies_the_command_that_exports_a_configuration(browser: Browser, report: Path) -> None:
    browser("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.show(report)
    browser.run(f"{CHOSEN}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.click(*browser.run(f"{PLACE}({CHOSEN})"))
    assert copied(browser).endswith("/search/result.json:3")
    label = browser.run("document.querySelector('output.pointed').textContent")
    assert label.startswith("Number 3, chosen: loss 0.4")


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
    assert browser.run("document.querySelector('output.pointed').textContent") == reached[-1]
    browser.press("Enter", 13, "\r")
    assert copied(browser).endswith("/search/result.json:2")


def test_the_keyboard_copies_whatever_the_mouse_does(browser: Browser, full: Path) -> None:
    browser.show(full)
    browser.run("document.querySelector('#search summary').focus()")
    browser.press("Enter", 13, "\r")
    browser.until("document.querySelector('#search table').checkVisibility()")
    browser.run("document.body.tabIndex = -1; document.querySelector('#search').scrollIntoView(); "
                "getSelection().collapse(document.querySelector('#search h2'), 0)")  # fmt: skip
    with_mouse = set(browser.run("[...document.querySelectorAll('[data-copy]')].map(e => e.dataset.copy)"))
    reached = set[str]()
    for _ in range(100):
        browser.press("Tab", 9)
        reached.add(browser.run("document.activeElement.dataset.copy || ''"))
    assert len(with_mouse) == 80
    assert reached - {""} == with_mouse


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_asks_for(browser: Browser, full: Path, scheme: str) -> None:
    browser.show(full, scheme=scheme)
    found = browser.run(COLOURS)
    assert len(found) > 200
    for words, text, ground in found:
        assert contrast(text, ground) >= 4.5, words
    shades = browser.run(
        "[...document.querySelectorAll('#layers .cells rect')].map(e => +e.getAttribute('fill-opacity'))"
    )
    assert len(set(shades)) >= 33
    assert (min(shades), max(shades)) == (PALE, DARK)


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "dark")])
def test_a_table_wider_than_its_place_shows_that_there_is_more(
    browser: Browser, report: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.show(report, size, scheme)
    browser.run("document.querySelectorAll('.scroll table').forEach(e => { e.style.visibility = 'hidden' })")
    seen = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
    wider = list[bool]()
    for number in range(browser.run(f"{seen}.length")):
        region, left, right = f"{seen}[{number}]", list[str](), list[str]()
        assert browser.run(f"{region}.tabIndex === 0 && {region}.ariaLabel !== ''")
        for end in (0, 9999):
            browser.run(f"{region}.scrollLeft = {end}")
            x, y, width, height = browser.run(f"{RECTANGLE}({region})")
            left.append(browser.clip(x, y - 2, 8, height + 4))
            right.append(browser.clip(x + width - 8, y - 2, 8, height + 4))
        wider.append(browser.run(f"{region}.scrollWidth > {region}.clientWidth"))
        assert left[0] == right[1]  # nothing there
        assert (right[0] != right[1], left[0] != left[1]) == (wider[-1], wider[-1])
    assert any(wider) is (size == PHONE)
    assert not all(wider)


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
