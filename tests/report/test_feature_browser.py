"""The browser of features in a real Chromium: it finds, sorts and opens features by mouse and keyboard, and runs no data."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from scansion.report.features.directions import LOGIT_BINS
from scansion.report.features.gathering import BINS
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
    pages = [made_up("masked", 600, elsewhere={1: 700}), made_up("plain", 700, masked=False, elsewhere={0: 600})]
    return write_page(folder / "page.html", pages)


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


def test_every_column_sorts_both_ways(open_page, small: Path) -> None:
    page = open_page(small)

    def column(key: str) -> list[float]:
        texts = page.evaluate(
            f"[...document.querySelectorAll('.row .{key}')]"
            ".sort((a, b) => a.parentNode.ariaRowIndex - b.parentNode.ariaRowIndex)"
            ".map(cell => cell.textContent)"
        )
        return [float(text.rstrip("%").replace(",", "")) for text in texts if text != "–"]

    for key in ("feature", "specialisation", "fidelity", "density", "max_act", "centre"):
        directions = set()
        for _ in range(2):
            page.click(f".head .{key} button")
            directions.add(direction := page.get_attribute(f".head .{key}", "aria-sort"))
            values = column(key)
            assert len(values) > 10, key
            assert values == sorted(values, reverse=direction == "descending"), (key, direction)
        assert directions == {"ascending", "descending"}, key
        assert page.locator("[aria-sort]").count() == 1, key


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
    lists = page.locator("#feature .contexts")
    assert [lists.nth(number).locator("li").count() for number in range(lists.count())] == [5, 2, 2]
    assert page.locator("#feature .peak").count() == 9
    assert page.locator("#feature .pair:not(.even) section:first-child li").count() == 4
    assert page.locator("#feature .lens li").count() == 8
    assert page.locator("#feature .plot .trace").count() == 2, "its profile and its mask"
    assert page.locator("#feature .bar-mark").count() == BINS + LOGIT_BINS
    assert page.locator("#feature .partners li").count() == 3
    assert page.url.endswith("#feature-0-599")
    page.click("#feature .pair:not(.even) .link >> nth=0")
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
        page.hover("#feature .plot >> nth=0")
        assert page.inner_text("#feature .readout >> nth=0").startswith("position ")
    page.fill("#feature-search", "<img src=x")
    assert count(page) != "0 of 300 features"
    page.select_option("#feature-run", "1")
    page.wait_for_selector(".row")
    assert page.title() == HOSTILE[0]
    assert page.inner_text("h1") == HOSTILE[0]
    assert page.locator("main img, main iframe, main b, main script").count() == 0
    assert page.evaluate("document.getElementById('feature-run').options[1].textContent").startswith("<img src=x")


def test_the_first_feature_is_open_where_there_is_room_and_follows_the_table(open_page, small: Path) -> None:
    page = open_page(small)
    page.wait_for_selector("#feature h3:has-text('Feature 1 ')")
    assert "#feature-" not in page.url and page.evaluate("scrollY") == 0
    page.click(".head .density button")
    first = shown(page)[0]
    page.wait_for_selector(f"#feature h3:has-text('Feature {first} ')")
    page.click(".row >> nth=4")
    chosen = page.get_attribute(".row[aria-selected='true']", "data-feature")
    page.click(".head .max_act button")
    page.wait_for_timeout(100)
    assert page.inner_text("#feature h3").startswith(f"Feature {chosen} "), "one that was chosen stays"
    assert not open_page(small, size=PHONE).is_visible("#feature"), "a phone has no room beside the table"


def test_sink_like_and_dead_features_stand_apart(open_page, small: Path) -> None:
    page = open_page(small)
    page.focus(".row[tabindex='0']")
    page.keyboard.press("End")
    end = shown(page)
    assert end[-1] == 0, "it never fired"
    assert all(f % 50 == 2 for f in end[-5:-1]) and page.locator(".row .badge").count() > 3
    page.click(".head .feature button")
    assert shown(page)[:4] == [0, 1, 2, 3], "but not in order of their numbers"


@pytest.mark.parametrize(
    ("kept", "features"),
    [("alive", 599), ("dead", 1), ("dense", None), ("rare", None), ("sink", 12), ("ordinary", 587)],
)
def test_features_are_filtered(open_page, small: Path, kept: str, features: int | None) -> None:
    page = open_page(small)
    page.select_option("#feature-filter", kept)
    said = page.inner_text(f"#feature-filter option[value='{kept}']")
    n = int(said.rsplit("(", 1)[1].rstrip(")"))
    assert count(page) == f"{n} of 600 features" and features in (n, None)
    page.fill("#feature-search", "word1")
    some = shown(page)
    assert len(some) < 600 and all((f % 50 == 2) == (kept == "sink") for f in some if kept in ("sink", "ordinary"))


def test_contexts_can_be_searched(open_page, small: Path) -> None:
    page = open_page(small)
    page.click(".row >> nth=0")
    page.wait_for_selector("#feature .contexts")
    phrase = page.inner_text("#feature .contexts .context >> nth=0").strip("… ").split()[2:5]
    page.check("#feature-in-contexts")
    page.fill("#feature-search", " ".join(phrase).upper())
    until(page, "document.getElementById('feature-count').textContent.includes(' of ')")
    found = shown(page)
    assert 1 in found and 0 not in found
    for f in found[:3]:
        page.click(f".row[data-feature='{f}']")
        page.wait_for_selector(f"#feature h3:has-text('Feature {f} ')")
        texts = page.locator("#feature .contexts .context").all_inner_texts()
        assert any(" ".join(phrase) in " ".join(text.split()) for text in texts)
    page.fill("#feature-search", "no such words")
    until(page, "document.querySelectorAll('.row').length === 0")
    page.uncheck("#feature-in-contexts")
    page.fill("#feature-search", "")
    until(page, "document.getElementById('feature-count').textContent === '600 features'")


def test_the_table_can_be_exported(open_page, small: Path, tmp_path: Path) -> None:
    page = open_page(small)
    page.select_option("#feature-filter", "sink")
    with page.expect_download() as download:
        page.click("#feature-export")
    assert download.value.suggested_filename == "masked-features.csv"
    download.value.save_as(tmp_path / "features.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "features.csv").read_text("utf-8-sig"))))
    assert [int(row["feature"]) for row in rows] == shown(page)[: len(rows)]
    assert len(rows) == 12 and all(float(row["sink_share"]) > 0.5 for row in rows)
    assert "word" in rows[0]["peak_tokens"] and float(rows[0]["specialisation_mbit"]) >= 0


def test_an_export_holds_no_formula(open_page, tmp_path: Path) -> None:
    words = ["=1+1", "+cmd", "@x", '"quoted", and'] * 50
    page = open_page(write_page(tmp_path / "page.html", [made_up("a", 20)], words))
    with page.expect_download() as download:
        page.click("#feature-export")
    download.value.save_as(tmp_path / "features.csv")
    for row in csv.DictReader(io.StringIO((tmp_path / "features.csv").read_text("utf-8-sig"))):
        assert not row["peak_tokens"].startswith(("=", "+", "-", "@")) and None not in row


def test_the_nearest_feature_of_another_run_opens_there(open_page, small: Path) -> None:
    page = open_page(small)
    link = page.locator("#feature .elsewhere .link >> nth=0")
    other = link.inner_text().split()[-1]
    link.click()
    page.wait_for_selector(f"#feature h3:has-text('Feature {other} plain')")
    assert page.input_value("#feature-run") == "1" and page.url.endswith(f"#feature-1-{other}")
    colours = [page.evaluate("getComputedStyle(document.querySelector('#feature h3 .swatch')).backgroundColor")]
    page.select_option("#feature-run", "0")
    page.wait_for_selector("#feature h3:has-text('masked')")
    colours.append(page.evaluate("getComputedStyle(document.querySelector('#feature h3 .swatch')).backgroundColor"))
    assert colours[0] != colours[1], "each run has a colour of its own"


def test_small_charts_say_what_is_under_the_pointer(open_page, small: Path) -> None:
    page = open_page(small, fragment="#feature-0-7")
    page.wait_for_selector("#feature .small-chart svg")
    assert page.inner_text("#feature .explanation") == "words of masked <b>"
    page.hover("#feature .small-chart >> nth=0")
    assert "position " in page.inner_text("#feature .readout >> nth=0")
    page.hover("#feature .small-chart >> nth=1")
    assert "firings" in page.inner_text("#feature .readout >> nth=1")
    page.hover("#feature .small-chart >> nth=2")
    assert "tokens" in page.inner_text("#feature .readout >> nth=2")
    assert page.inner_text("#feature .entries").count("dimension ") == 3


_COUNT_UNPACKED = """
  window.unpackedChunks = window.unpackedCharacters = 0;
  const real = window.atob;
  window.atob = (text) => { unpackedChunks++; unpackedCharacters += text.length; return real(text); };
"""


def test_fifty_thousand_features_cost_no_more_than_two_thousand(open_page, tmp_path: Path) -> None:
    """What the browser does before a page can be used, counted: elements made, and data of features unpacked."""
    work: list[dict[str, int]] = []
    for n in (2_000, 50_000):
        path = write_page(tmp_path / f"{n}.html", [made_up("a", n, K=3, weaker=1), made_up("b", n, K=3, weaker=1)])
        html = path.read_text("utf-8")
        page = open_page(path, first=_COUNT_UNPACKED)
        assert count(page) == f"{n:,} features"
        page.wait_for_selector("#feature .plot[data-drawn]")
        chunks, characters = page.evaluate("[unpackedChunks, unpackedCharacters]")
        page.fill("#feature-search", str(n - 1))
        page.click(f".row[data-feature='{n - 1}']")
        page.wait_for_selector(f"#feature h3:has-text('Feature {n - 1} ')")
        page.fill("#feature-search", "")
        slowest = page.evaluate(
            """async () => {
              const body = document.querySelector('.body');
              let most = 0;
              for (let i = 0; i < 20; i++) {
                body.scrollTop = (i * 7919 * 34) % body.scrollHeight;
                await new Promise(requestAnimationFrame);
                most = Math.max(most, document.querySelectorAll('.row').length);
              }
              return most;
            }"""
        )
        work.append(
            {
                "elements": page.evaluate("document.querySelectorAll('body *:not(script)').length"),
                "rows": slowest,
                "bytes before the data": html.index('id="chunk-features"'),
                "chunks unpacked": chunks,
                "characters unpacked": characters,
            }
        )
    small, large = work
    assert large["rows"] <= 60 and large["elements"] <= small["elements"] + 40
    assert large["bytes before the data"] <= small["bytes before the data"] + 5_000, "the list of chunks alone grows"
    assert large["chunks unpacked"] == small["chunks unpacked"], "blocks of features that nobody opened stay packed"
    per_feature = (large["characters unpacked"] - small["characters unpacked"]) / 48_000
    assert per_feature < 90, "the table of the first run, and nothing else, grows with the number of features"
