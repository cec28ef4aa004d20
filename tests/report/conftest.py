"""A headless Chromium for tests of pages: what it logs and what it asks for is kept, and neither may be anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scansion.report import FeatureConfig, ReportData, study_data, write_report
from scansion.study import StudyPlan, StudyRecord, execute
from tests.conftest import draw_all_figures
from tests.report.browser import LAPTOP
from tests.study.conftest import patch, settings  # noqa: F401, fixtures of the tiny study

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


def chromium_path() -> str:
    """Where Chromium is; without one the test is skipped, or fails where one is required."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    message = "there is no Chromium here, in which pages would be tested (Debian: apt-get install chromium)"
    if os.environ.get("SCANSION_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, of Playwright's type."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(path, size=LAPTOP, dark=False, fragment="", without_policy=False, first="")``: the page once it is ready.

    ``without_policy`` lets the page do what its own security policy would stop; ``first`` is a script that runs before it.

    Fails at the end of the test if a page logged an error or a warning, threw, or asked for anything but itself.
    """
    wrong: list[str] = []
    contexts: list[Any] = []

    def listen(page: Any) -> None:
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def ask(route: Any) -> None:
        if route.request.resource_type == "document" and route.request.url.startswith("file:"):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    def open_it(
        path: Path,
        size: tuple[int, int] = LAPTOP,
        dark: bool = False,
        fragment: str = "",
        without_policy: bool = False,
        first: str = "",
    ) -> Any:
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            bypass_csp=without_policy,
        )
        contexts.append(context)
        context.route("**/*", ask)
        page = context.new_page()
        listen(page)
        if first:
            page.add_init_script(first)
        page.goto(path.resolve().as_uri() + fragment)
        page.wait_for_selector("body[data-ready]", timeout=30_000)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not wrong


HOSTILE_ARM = "</script><img src=x onerror=alert(1)> $\\frac{$ \u2028"


@pytest.fixture(scope="module")
def study(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:  # noqa: F811
    """A tiny study carried out at two seeds: a baseline, two masked arms of one run, and a run that learnt nothing."""
    plain, masked, untrained = settings["runs"]
    soft = {**plain["sae"], "mask": {"family": "soft", "shared": 0.25}}
    runs = [
        plain,
        {"name": HOSTILE_ARM, "changes": HOSTILE_ARM, "arms": {"hard": {"sae": masked["sae"]}, "soft": {"sae": soft}}},
        untrained,
    ]
    plan = StudyPlan.model_validate(
        {
            **settings, "name": f"tiny {HOSTILE_ARM}", "runs": runs, "seeds": [0, 1],
            "hypothesis": f"asked {HOSTILE_ARM}", "primary_metric": "fve", "minimum_effect": 0.01,
        }
    )  # fmt: skip
    home = tmp_path_factory.mktemp("study <&>")
    execute(plan, {index: home / f"run_{index}" for index in range(len(runs))})
    return StudyRecord.open(home)


@pytest.fixture(scope="module")
def data(study: StudyRecord) -> ReportData:
    """The study as a report's data."""
    return study_data(study)


@pytest.fixture(scope="module")
def written(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's report, with all figures: the page's path."""
    features = FeatureConfig(examples=3, lens_tokens=4, neighbours=3)
    with pytest.MonkeyPatch.context() as figures:
        draw_all_figures(figures)
        return write_report(data, tmp_path_factory.mktemp("report"), features)
