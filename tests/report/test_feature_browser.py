"""The browser of features in a real Chromium: it finds, sorts and opens features by mouse and keyboard, and runs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import LAPTOP, PHONE, until
from tests.report.pages import WORDS, made_up, write_page

HOSTILE = [
    "</script><script>document.title = 'owned'</script>", "<img src=x onerror=\"document.title = 'owned'\">",
    "\u2028document.title='owned'\u2029", "<!--<script>", "]]>", "&lt;b&gt;", "<b>bold</b>", "javascript:alert(1)",
    "\u202egnirts\u202c", "\x00\x07\x1b[31m", "%{x}<extra></extra>", "{{ 7 * 7 }}", "$\\frac{1}{2}$", "'\"`\\", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SAEs of 600 features, the second without a mask."""
    folder = tmp_path_factory.mktemp("small")
    return write_page(folder / "page.html", [made_up("masked", 600), made_up("plain", 700, masked=False)])


def shown(page: Any) -> list[int]:
    """The features in the rows that exist, from the top."""
    return page.evaluate(
        "[...document.querySelectorAll('#feature-grid .row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map(row => Number(row.dataset.feature))"
    )


def count(page: Any) -> str:
    return page.inner_text("#feature-count")


def test_features_stand_in_order_of_specialisation_and_those_that_never_fired_come_last(open_page, small: Path) -> None:
    page = open_page(small)
    assert count(page) == "600 features"
    assert shown(page)[0] == 1, "its specialisation is half a bit"
    page.keyboard.press("Tab")
    page.focus("#feature-grid .row[tabindex='0']")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.feature") == "0"


@pytest.mark.parametrize("key", ["feature", "specialisation", "fidelity", "density", "max_act", "centre"])
def test_every_column_sorts_both_ways(open_page, small: Path, key: str) -> None:
    page = open_page(small)
    button, cell = f".head .{key} button", f".row .{key}"

    def column() -> list[float]:
        texts = page.evaluate(
            f"[...document.querySelectorAll('{cell}')].sort((a, b) => a.parentNode.ariaRowIndex - b.parentNode.ariaRowIndex)"
            ".map(cell => cell.textContent)"
        )
        return [float(text.rstrip("%").replace(",", "")) for text in texts if text != "–"]

    for _ in range(2):
        page.click(button)
        direction = page.get_attribute(f".head .{key}", "aria-sort")
        values = column()
        assert len(values) > 10
        assert values == sorted(values, reverse=direction == "descending")
    assert page.locator("[aria-sort]").count() == 1


def test_search_finds_numbers_and_tokens(open_page, small: Path) -> None:
    page = open_page(small)
    page.fill("#feature-search", "#123")
    assert shown(page) == [123]
    page.fill("#feature-search", "WORD17")
    some = shown(page)
    assert some and count(page).endswith("of 600 features")
    page.click(f".row[data-feature='{some[0]}']")
    page.wait_for_selector("#feature .plot[data-drawn]")
    assert "word17" in page.inner_text("#feature")
    page.fill("#feature-search", "no such token")
    assert shown(page) == [] and page.is_visible("text=No feature matches.")
    page.press("#feature-search", "Escape")
    assert count(page) == "600 features"


def test_a_feature_shows_everything_about_it(open_page, small: Path) -> None:
    page = open_page(small)
    page.fill("#feature-search", "599")
    page.click(".row[data-feature='599']")
    page.wait_for_selector("#feature .plot[data-drawn]")
    assert page.inner_text("#feature h3") == "Feature 599 masked"
    assert page.locator("#feature .contexts li").count() == 5
    assert page.locator("#feature .peak").count() == 5
    assert page.locator("#feature .pair section:first-child li").count() == 4
    assert page.locator("#feature .lens li").count() == 8
    assert page.locator("#feature .plot .scatterlayer .trace").count() == 2, "its profile and its mask"
    assert page.url.endswith("#feature-0-599")
    page.click("#feature .pair .link >> nth=0")
    page.wait_for_selector("#feature h3:has-text('Feature 0 ')")
    assert "It never fired on the held-out text." in page.inner_text("#feature")


def test_the_context_can_be_opened_whole(open_page, small: Path) -> None:
    page = open_page(small)
    page.click(".row >> nth=0")
    page.wait_for_selector("#feature .contexts")
    page.click("#feature .contexts .link >> nth=0")
    assert page.locator("#feature .contexts li >> nth=0 >> .token").count() == 32


def test_another_sae_can_be_chosen(open_page, small: Path) -> None:
    page = open_page(small)
    page.select_option("#feature-run", label="plain (seed 0)")
    until(page, "document.getElementById('feature-count').textContent === '700 features'")
    assert not page.is_visible(".head .fidelity"), "there is no mask to be faithful to"


def test_an_address_opens_a_feature(open_page, small: Path) -> None:
    page = open_page(small, fragment="#feature-1-44")
    page.wait_for_selector("#feature h3:has-text('Feature 44 plain')")
    page.evaluate("location.hash = '#feature-0-7'")
    page.wait_for_selector("#feature h3:has-text('Feature 7 masked')")
    assert page.url.endswith("#feature-0-7") and page.input_value("#feature-run") == "0"


def test_everything_can_be_done_from_the_keyboard(open_page, small: Path) -> None:
    page = open_page(small)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "feature-search"
    page.keyboard.type("word1")
    first = shown(page)[:3]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("Number(document.activeElement.dataset.feature)") == first[1]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus can be seen"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#feature h3:has-text('Feature {first[1]} ')")
    until(page, "document.activeElement.tagName === 'H3'")
    page.keyboard.press("Escape")
    assert page.evaluate("Number(document.activeElement.dataset.feature)") == first[1], "back where it was"
    assert page.locator("#feature h3").count() == 0


def test_the_focused_row_outlives_scrolling_away(open_page, small: Path) -> None:
    page = open_page(small)
    page.focus(".row[tabindex='0']")
    page.evaluate("document.querySelector('.body').scrollTop = 9000")
    until(page, "document.querySelectorAll('.row').length > 10")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.ariaRowIndex") == "3"


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_the_screen_in_both_themes(open_page, small: Path, size: tuple[int, int], dark: bool) -> None:
    page = open_page(small, size=size, dark=dark)
    page.click(".row >> nth=2")
    page.wait_for_selector("#feature .plot[data-drawn]")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (page.evaluate(brightness) < 128) == dark
    if size == PHONE:
        assert page.evaluate("document.getElementById('feature').getBoundingClientRect().width") == size[0]
        page.click("#feature .close")
    page.click("#theme")
    assert (page.evaluate(brightness) < 128) != dark, "the reader may choose the other"


def test_hostile_text_is_shown_and_nothing_else(open_page, tmp_path: Path) -> None:
    words = [HOSTILE[i % len(HOSTILE)] for i in range(len(WORDS))]
    path = write_page(tmp_path / "page.html", [made_up(HOSTILE[0], 300), made_up(HOSTILE[1], 300)], words, HOSTILE[0])
    page = open_page(path, without_policy=True)
    for place in range(1, 6):
        page.click(f".row[aria-rowindex='{place + 1}']")
        page.wait_for_selector("#feature .plot[data-drawn]")
        page.hover("#feature .plot .nsewdrag >> nth=0")
    page.fill("#feature-search", "<img src=x")
    assert count(page) != "0 of 300 features"
    page.select_option("#feature-run", "1")
    page.wait_for_selector(".row")
    assert page.title() == HOSTILE[0]
    assert page.inner_text("h1") == HOSTILE[0]
    assert page.locator("main img, main iframe, main b, main script").count() == 0
    assert page.evaluate("document.getElementById('feature-run').options[1].textContent").startswith("<img src=x")


def test_twenty_thousand_features_load_and_scroll_quickly(open_page, tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", [made_up("large", 20_000)])
    page = open_page(path)
    assert count(page) == "20,000 features"
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert loaded < 5_000, "milliseconds, of which a tenth is what it takes on an idle machine"
    slowest = page.evaluate(
        """async () => {
          const body = document.querySelector('.body');
          let slowest = 0;
          for (let i = 0; i < 60; i++) {
            const start = performance.now();
            body.scrollTop = (i * 7919 * 34) % body.scrollHeight;
            body.dispatchEvent(new Event('scroll'));
            body.getBoundingClientRect();
            slowest = Math.max(slowest, performance.now() - start);
            await new Promise(requestAnimationFrame);
          }
          return slowest;
        }"""
    )
    assert slowest < 250, "milliseconds to make the rows in view"
    assert page.locator(".row").count() < 60, "only those in view exist"
    page.fill("#feature-search", "19999")
    page.click(".row[data-feature='19999']")
    page.wait_for_selector("#feature .plot[data-drawn]")
