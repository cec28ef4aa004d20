"""A study's report: the page in a real Chromium, its figures on paper, and that both say what the study's record says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from scansion.cli.reporting import report
from scansion.errors import ConfigError
from scansion.evals import EvalResult, Evaluation, EvaluationConfig, Figure, evaluations
from scansion.evals.interp.autointerp import AutoInterpResult, FeatureInterpreted
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.report import FeatureConfig, ReportArm, ReportData, runs_data, write_report
from scansion.report.charts import pareto_charts, position_charts, probing_charts, training_charts
from scansion.report.plotly_form import figure_of
from scansion.report.tables.budget import budget_table
from scansion.report.tables.page import full_table, headline_table, verdicts
from scansion.study import StudyRecord
from tests.report.browser import LAPTOP, PHONE, until
from tests.report.conftest import HOSTILE_ARM

SECTIONS = ("summary", "cost", "specialisation", "probing", "positions", "training", "maps", "features", "provenance")
FIGURES = (
    "overview", "maps", "pareto_fve_l0", "pareto_fve_without_outliers_l0",
    "pareto_ce_loss_recovered_train_seconds", "specialisation", "fidelity", "probing",
    "probing_by_data_set", "fve_by_position", "fve_without_outliers_by_position",
    "l0_by_position", "training_loss", "training_l0",
)  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_names_every_arm_and_draws_the_sound_ones(data: ReportData, written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    assert "untrained: degenerate" in page.text and "no training step was taken" in page.text
    assert [arm.name for arm in data.sound] == ["plain", f"{HOSTILE_ARM}: hard", f"{HOSTILE_ARM}: soft"]
    for row in headline_table(data)[1]:
        assert row.name in page.text
        assert all(cell.value in page.text and cell.difference in page.text for cell in row.cells)
    for _, sentence in verdicts(data):
        assert sentence in page.text
    for text in (f"asked {HOSTILE_ARM}", data.plan.digest if data.plan else "", "scansion study run plan.yaml"):
        assert text in page.text


def test_budgets_are_given_all_four_ways(data: ReportData, written: Path) -> None:
    runs = [arm.results[0] for arm in data.sound]
    table = budget_table(runs)
    assert table is not None
    (rows,) = table.groups
    page = Page(written.read_text(encoding="utf-8"))
    assert [len(row) for row in rows] == [len(table.columns)] * len(runs) and rows[0][4] == "1.00"
    assert all(cell in page.text for row in rows for cell in row)
    plain, hard = (run.position.budget for run in runs[:2] if run.position)
    assert hard.width == plain.width and hard.available_mean < plain.available_mean
    assert rows[1][2].startswith(f"{hard.available_mean:,.0f} [{hard.available_min:,}")


def test_the_page_asks_no_other_machine_for_anything(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    references = [value for name, value in page.attributes if name in ("src", "href", "data", "action", "srcset")]
    assert references and all(value.startswith(("#", "data:")) for value in references)
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.findall(r"url\(|@import|https?://", html), "plotly.js, which names some, is packed"
    assert "default-src 'none'" in html


@pytest.mark.no_cover
def test_a_report_is_the_same_whenever_it_is_written(
    data: ReportData, written: Path, tmp_path: Path, all_figures: None
) -> None:
    again = write_report(data, tmp_path, FeatureConfig(examples=3, lens_tokens=4, neighbours=3))
    assert again.read_bytes() == written.read_bytes()
    for name in ("overview", "maps"):
        assert (tmp_path / f"figures/{name}.pdf").read_bytes() == (written.parent / f"figures/{name}.pdf").read_bytes()


def test_every_figure_is_there_for_papers(written: Path) -> None:
    for name in FIGURES:
        assert (written.parent / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF"), name
        assert (written.parent / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_the_table_says_what_the_comparison_says(data: ReportData) -> None:
    headings, rows = headline_table(data)
    assert [len(row.cells) for row in rows] == [len(headings)] * 3
    arm = data.comparison.arms[1]
    cell = rows[1].cells[headings.index("FVE, all tokens")]
    figure, difference = arm.figures["fve"], arm.differences["fve"].estimate
    assert (cell.value, cell.interval) == (f"{figure.value:.3f}", f"[{figure.low:.3f}, {figure.high:.3f}]")
    assert cell.difference.removesuffix(" *") == f"{difference.value:+.3f}"
    assert arm.differences["fve"].unequal_l0
    assert cell.difference_interval == f"[{difference.low:+.3f}, {difference.high:+.3f}] †"
    assert cell.tone in ("better", "worse") if arm.differences["fve"].significant else cell.tone == ""
    arms, every = full_table(data)
    assert arms == [row.name for row in rows] and len(every) > len(headings)


def test_the_front_is_the_comparisons(data: ReportData) -> None:
    charts = {chart.key: chart for chart in pareto_charts(data)}
    for front in data.comparison.fronts:
        chart = charts[f"pareto_{front.y}_{front.x}"]
        points = {series.name: (series.x[0], series.y[0]) for series in chart.series if series.kind == "points"}
        (staircase,) = [series for series in chart.series if series.kind == "front"]
        corners = list(zip(staircase.x, staircase.y, strict=True))
        assert corners == sorted(points[name] for name in front.arms)
        assert [y for _, y in corners] == sorted(y for _, y in corners), "what costs more gives more"
        for name, (cost, gain) in points.items():
            beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points.values())
            assert beaten == (name not in front.arms)


def test_costs_that_tables_show_as_equal_are_no_chart(data: ReportData) -> None:
    def with_l0(arm: ReportArm, l0: float) -> ReportArm:
        values = {**arm.info.values, "l0": [l0] * len(arm.info.seeds)}
        return replace(arm, info=arm.info.model_copy(update={"values": values, "by_text": {}}))

    alike = replace(data, arms=[with_l0(arm, 32 - index / 1000) for index, arm in enumerate(data.arms)])
    assert "pareto_fve_l0" in {chart.key for chart in pareto_charts(data)}
    assert not [chart.key for chart in pareto_charts(alike) if chart.key.endswith("_l0")]


def test_figures_without_outlier_tokens_come_first_and_those_with_them_are_folded_away(
    data: ReportData, open_page, written: Path
) -> None:
    headings, _ = headline_table(data)
    assert headings[:2] == ["FVE w/o outliers", "FVE, all tokens"]
    folded = [chart.key for chart in (*pareto_charts(data), *position_charts(data)) if chart.folded]
    assert folded == ["pareto_fve_l0", "pareto_fve_train_seconds", "fve_by_position"]
    page = open_page(written)
    plot = "[data-chart='pareto_fve_l0']"
    assert page.locator("[data-chart='pareto_fve_without_outliers_l0']").is_visible()
    assert not page.locator(plot).is_visible()
    page.click("#cost details.folded summary")
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_selector(f"{plot}[data-drawn]")


def test_lines_are_means_over_seeds_with_the_range_as_band(data: ReportData) -> None:
    chart = next(chart for chart in position_charts(data) if chart.key == "fve_by_position")
    for series, arm in zip(chart.series, data.sound, strict=True):
        rows = np.array([one.core.by_position["fve"] for one in arm.results], dtype=float)
        assert np.allclose(np.array(series.y, dtype=float), rows.mean(axis=0))
        assert np.allclose(np.array(series.low, dtype=float), rows.min(axis=0))
        assert np.allclose(np.array(series.high, dtype=float), rows.max(axis=0))
    assert [len(chart.series) for chart in training_charts(data)] == [3, 3, 3]


class DriftConfig(EvaluationConfig):
    evaluation: ClassVar[str] = "drift"


class DriftResult(EvalResult):
    eval: str = "drift"
    drift: float
    at: dict[int, float | None]


class Drift(Evaluation[DriftConfig, DriftResult]):
    """An evaluation of one's own, known by position."""

    result = DriftResult
    figures = (
        Figure("drift", "drift, %", scale=100, by_position=lambda result: (list(result.at), result.at.values())),
    )

    def run(self, saes, held_out, load_lm):
        raise AssertionError("a report measures nothing")


def test_a_figure_that_ones_own_evaluation_gives_by_position_has_its_chart(
    data: ReportData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "_items", dict(evaluations._items))
    evaluations.register(DriftConfig)(Drift)
    first, *others = data.sound

    def with_drift(run: RunResults, at: Mapping[int, float | None]) -> RunResults:
        shared = {name: getattr(run.core, name) for name in EvalResult.model_fields if name in DriftResult.model_fields}
        own = DriftResult(**{**shared, "eval": "drift", "schema_version": 1}, drift=0.1, at=dict(at))
        return RunResults({**run.results, "drift": own})

    measured = zip(first.evaluations.items(), ({1: 0.1, 2: 0.3}, {1: 0.3, 2: None}), strict=True)
    arm = replace(first, evaluations={seed: with_drift(run, at) for (seed, run), at in measured})
    charts = position_charts(replace(data, arms=[arm, *others]))
    assert [chart.key for chart in charts][:4] == [
        f"{name}_by_position" for name in ("fve_without_outliers", "fve", "l0", "drift")
    ]
    (chart,) = [chart for chart in charts if chart.key == "drift_by_position"]
    assert (chart.title, chart.y.title) == ("drift, % by position", "drift, %")
    (line,) = chart.series
    assert (line.name, list(line.x)) == (arm.name, [1, 2]), "of the run that has it"
    assert list(line.y) == [pytest.approx(20), None] and list(line.low or ()) == [pytest.approx(10), None]


def test_bars_are_accuracies_over_seeds_and_begin_at_chance(data: ReportData) -> None:
    overall, by_set = probing_charts(data)
    for series, arm in zip(overall.series, data.sound, strict=False):
        probed = [one.sparse_probing for one in arm.results]
        accuracies = [one.sae_test_accuracy.value for one in probed if one and one.sae_test_accuracy.value is not None]
        expected = Estimate.of_seeds(accuracies)
        assert series.low and series.high
        assert (series.y[-1], series.low[-1], series.high[-1]) == (expected.value, expected.low, expected.high)
        assert series.y[-1] == pytest.approx(arm.info.means["sae_test_accuracy"])
    traces = [trace for trace in figure_of(overall)["data"] if trace["type"] == "bar"]
    for trace, series in zip(traces, overall.series, strict=False):
        tops = [trace["base"] + height for height in trace["y"]]
        assert trace["base"] == 0.5 and tops == pytest.approx(list(series.y))
    assert [label for _, label in by_set.x.labels] == ["1_words"] or by_set.x.labels[0][1] == "(1_words)"


@pytest.mark.parametrize(("size", "dark"), [(LAPTOP, False), (PHONE, True)])
def test_every_plot_is_drawn(open_page, written: Path, size: tuple[int, int], dark: bool) -> None:
    page = open_page(written, size=size, dark=dark, without_policy=True)
    assert [f"#{name}" for name in SECTIONS] == page.evaluate(
        "[...document.querySelectorAll('nav a')].map(link => link.getAttribute('href'))"
    )
    page.evaluate("document.querySelectorAll('details.folded').forEach(one => { one.open = true; })")
    for number in range(page.locator(".plot").count()):
        page.locator(".plot").nth(number).scroll_into_view_if_needed()
        until(page, f"document.querySelectorAll('.plot')[{number}].dataset.drawn === 'yes'")
    page.evaluate("document.getElementById('map-panels').scrollIntoView()")
    until(page, "document.querySelectorAll('.map').length >= 3")
    # All in one question: a plot that is drawn again, at another width for example, is empty for a moment.
    until(
        page,
        "[...document.querySelectorAll('.plot')]"
        ".every(plot => plot.dataset.drawn && plot.querySelector('.trace, .hm, .errorbar'))",
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.locator("main img").count() == 0 and page.title().startswith("tiny </script>")


def test_a_run_can_be_hidden_in_every_plot(open_page, written: Path) -> None:
    page = open_page(written)
    plot = "[data-chart='fve_without_outliers_by_position']"
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_selector(f"{plot}[data-drawn]")
    lines = f'[...document.querySelectorAll("{plot} .scatterlayer .trace")].length'
    before = page.evaluate(lines)
    page.click("#key button >> nth=1")
    assert page.get_attribute("#key button >> nth=1", "aria-pressed") == "false"
    until(page, f"{lines} < {before}")
    page.click("#key button >> nth=1")
    until(page, f"{lines} === {before}")


def test_plots_follow_the_theme(open_page, written: Path) -> None:
    page = open_page(written)
    plot = "[data-chart='fve_without_outliers_by_position']"
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_selector(f"{plot}[data-drawn]")
    ink = f'getComputedStyle(document.querySelector("{plot} .xtick text")).fill'
    before = page.evaluate(ink)
    page.click("#theme")
    until(page, f"{ink} !== '{before}'")


def test_features_of_every_arm_can_be_looked_up(open_page, written: Path, data: ReportData) -> None:
    page = open_page(written, fragment="#feature-2-5")
    page.wait_for_selector("#feature .plot[data-drawn]")
    assert page.locator("#feature-run option").count() == len(data.sound)
    assert page.inner_text("#feature h3").startswith("Feature 5")
    page.wait_for_timeout(500)  # plots above are drawn meanwhile, and must not move it away
    until(page, "document.getElementById('feature').getBoundingClientRect().top < innerHeight / 2")
    assert page.evaluate("scrollY") > 1000, "below all plots"
    row = page.locator(".row[data-feature='5']")
    assert row.get_attribute("aria-selected") == "true" and row.is_visible()
    page.reload()
    page.wait_for_selector("#feature h3:has-text('Feature 5')")
    until(page, "document.getElementById('feature').getBoundingClientRect().top < innerHeight / 2")
    assert page.locator("#feature .lens li").count() == 8


def test_loose_runs_are_arms_of_one_seed(
    open_page, study: StudyRecord, data: ReportData, tmp_path: Path, all_figures: None
) -> None:
    arms = [arm for arm in study.arms if arm.info.status == "ok"][:2]
    results = [arm.evaluations()[0] for arm in arms]
    loose = runs_data(results, {arm.name: arm.seed_folders[0] for arm in arms}, data.held_out)
    cell = headline_table(loose)[1][0].cells[0]
    fve = results[0].core.fve
    assert cell.interval == f"[{fve.low:.3f}, {fve.high:.3f}]", "over contexts, for there is one seed"
    path = write_report(loose, tmp_path, None)
    page = open_page(path)
    assert "do not cover the variation between seeds" in page.inner_text("#summary")
    assert page.locator("#features").count() == 0


def test_a_report_on_nothing_says_so_and_draws_nothing(
    open_page, study: StudyRecord, data: ReportData, tmp_path: Path
) -> None:
    (blank,) = [arm for arm in study.arms if arm.info.status == "degenerate"]
    loose = runs_data([blank.evaluations()[0]], {blank.name: blank.seed_folders[0]}, data.held_out)
    page = open_page(write_report(loose, tmp_path, FeatureConfig()))
    assert "No run can be compared" in page.inner_text("#summary")
    assert "untrained: degenerate" in page.inner_text("#summary")
    assert page.locator(".plot, table").count() == 0
    assert not (tmp_path / "figures").exists()


def test_the_command_writes_the_report(study: StudyRecord, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("scansion.cli.reporting.fetch", lambda names: {})
    report(study.folder, out=tmp_path / "page", features=False)
    assert (tmp_path / "page/index.html").is_file() and (tmp_path / "page/figures/overview.pdf").is_file()
    assert str(tmp_path / "page/index.html") in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds no study"):
        report(tmp_path)


def test_studies_and_runs_have_cards_for_notebooks(study: StudyRecord) -> None:
    for shown in (study._repr_html_(), study.arms[1]._repr_html_()):
        assert "<img" not in shown and "&lt;img src=x" in shown
        assert f"{study.arms[1].info.means['fve']:.3f}" in shown
    assert "degenerate" in study._repr_html_()


def test_sentences_of_ones_own_are_added_to_the_page(
    run: Callable[..., tuple[int, str, str]], open_page, written: Path, study: StudyRecord, tmp_path: Path
) -> None:
    page_file = Path(shutil.copy(written, tmp_path / "index.html"))
    arm = study.arms[0]
    assert open_page(page_file).is_hidden("#sentences")
    for text in ("w5 w9 w20 w21", "w7 w3", "w5 w9 w20 w21"):
        status, out, err = run("look", arm.seed_folders[0], text, "--page", tmp_path, "--device", "cpu")
        assert status == 0 and "added to" in out, err
    page = open_page(page_file, without_policy=True)
    page.wait_for_selector("#sentences article")
    assert page.locator("#sentences article").count() == 2, "the same sentence once"
    page.locator("#sentences .token").filter(has_text="w20").first.click()
    link = page.locator("#sentences .firing .link >> nth=0")
    feature = link.inner_text().split()[1]
    link.click()
    page.wait_for_selector(f"#feature h3:has-text('Feature {feature} ')")
    assert page.locator("#feature h4:has-text('Sentences of your own')").count() == 1
    assert "w20" in page.locator("#feature .contexts >> nth=0").inner_text()
    masked = study.arms[1].seed_folders[1]  # the page shows the first seed
    status, _, err = run("look", masked, "w5", "--page", tmp_path, "--device", "cpu")
    assert status == 2 and "has no features of this run, but of plain" in err
    (tmp_path / "other.html").write_text("<html></html>")
    status, _, err = run("look", masked, "w5", "--page", tmp_path / "other.html", "--device", "cpu")
    assert status == 2 and "has no pages of features" in err
    status, _, err = run("look", masked, "w5", "--page", tmp_path / "none", "--device", "cpu")
    assert status == 2 and "is no report" in err


def test_feature_pages_can_be_as_small_as_they_get(open_page, data: ReportData, tmp_path: Path) -> None:
    least = FeatureConfig(examples=1, weaker_examples=0, neighbours=0, lens_tokens=0, n_contexts=3)
    page = open_page(write_report(data, tmp_path, least), fragment="#feature-1-3")
    page.wait_for_selector("#feature h3:has-text('Feature 3 ')")
    assert page.locator("#feature .partners li, #feature .elsewhere li, #feature .lens li").count() == 0
    page.keyboard.press("Escape")
    assert page.locator("#feature h3").count() == 0


def test_a_feature_shows_what_a_language_model_said_of_it(open_page, data: ReportData, tmp_path: Path) -> None:
    first, *others = data.sound
    seed, results = next(iter(first.evaluations.items()))
    shared = {name: getattr(results.core, name) for name in EvalResult.model_fields}
    said = FeatureInterpreted(
        feature=5, explanation="numbers", fires=[], predicted=[], score=None, balanced_accuracy=None
    )
    result = AutoInterpResult(
        **{**shared, "eval": "autointerp"}, score=None, balanced_accuracy=None, n_unread=0, features=[said]
    )
    runs = RunResults({**results.results, "autointerp": result})
    arms = [replace(first, evaluations={**first.evaluations, seed: runs}), *others]
    least = FeatureConfig(examples=1, weaker_examples=0, neighbours=0, lens_tokens=0, n_contexts=3)
    page = open_page(write_report(replace(data, arms=arms), tmp_path, least), fragment="#feature-0-5")
    page.wait_for_selector("#feature .explanation:has-text('numbers')")
