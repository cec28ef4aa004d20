"""The tables of a page, as cells of text: figures with intervals and differences, verdicts, probing by data set."""

from __future__ import annotations

from dataclasses import dataclass

from scansion.evals import Figure
from scansion.evals.probing.result import SparseProbingResult
from scansion.report.data import ReportArm, ReportData
from scansion.report.tables.summary import with_gain
from scansion.study.compare.comparison import ComparedArm, Difference
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import difference_text, figure_text, has_star
from scansion.study.notes import verdict


@dataclass(frozen=True)
class Cell:
    """One cell: a figure, and its difference from the baseline's, each with its interval.

    Attributes:
        difference: with a star where it is significant, as ``STAR_NOTE`` defines.
        tone: of a difference with a star: ``better`` or ``worse``, or ``different`` where neither side is good; empty for
            any other.
    """

    value: str
    interval: str = ""
    difference: str = ""
    difference_interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One arm's row."""

    name: str
    about: str
    cells: list[Cell]


def headline_table(data: ReportData) -> tuple[list[str], list[Row]]:
    """Headings and rows of the figures that a headline shows; those that no arm has are left out."""
    return _table(data, [name for name in _known(data) if figure(name).headline])


def full_table(data: ReportData) -> tuple[list[str], list[Row]]:
    """Every figure: a row for each, a column for each arm."""
    names = _known(data)
    _, rows = _table(data, names)
    turned = [Row(figure(name).label, "", [row.cells[index] for row in rows]) for index, name in enumerate(names)]
    return [row.name for row in rows], turned


def verdicts(data: ReportData) -> list[tuple[str, str]]:
    """(arm, sentence) on the metric that the plan says decides; empty for loose runs."""
    if data.plan is None:
        return []
    name, smallest = data.plan.primary_metric, data.plan.minimum_effect
    return [
        (arm.name, f"{figure(name).label}: {verdict(arm.differences[name], name, smallest)}.")
        for arm in data.comparison.arms
        if name in arm.differences
    ]


def probing_by_set(result: SparseProbingResult) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each data set: accuracies, each with its gain over an untrained SAE."""
    ks = sorted(result.sae_top_k)
    headings = ["data set", *(f"k={k}" for k in ks), "all features", "untrained SAE", "LM", "bag of words", "qualified"]
    rows = [
        [
            one.name,
            *(with_gain(one.sae_top_k[k], one.gain_top_k[k]) for k in ks),
            with_gain(one.sae_test_accuracy, one.gain_test_accuracy),
            str(one.random_test_accuracy),
            str(one.lm_test_accuracy),
            str(one.bag_test_accuracy),
            "yes" if one.qualified else "no",
        ]
        for one in result.datasets
    ]
    return headings, rows


def _known(data: ReportData) -> list[str]:
    found = [arm.figures() for arm in data.sound]
    names = dict.fromkeys(name for figures in found for name in figures)
    return [name for name in names if any(name in one and one[name].value is not None for one in found)]


def _table(data: ReportData, names: list[str]) -> tuple[list[str], list[Row]]:
    compared = {arm.name: arm for arm in data.comparison.arms}
    rows = [Row(arm.name, _about(arm), [_cell(arm, compared[arm.name], name) for name in names]) for arm in data.sound]
    return [figure(name).label for name in names], rows


def _about(arm: ReportArm) -> str:
    config, n = arm.results[0].core.sae_config, len(arm.results)
    mask = "no mask" if not config.mask.has_weights else f"mask {config.mask.family}"
    return f"{config.architecture} {config.d_sae:,}, {mask}, {n} seed{'' if n == 1 else 's'}"


def _cell(arm: ReportArm, compared: ComparedArm, name: str) -> Cell:
    how = figure(name)
    value, _, interval = figure_text(arm.figures().get(name), how).partition(" ")
    difference = compared.differences.get(name)
    shown = difference_text(difference, how) if difference is not None else ""
    gap, _, spread = ("" if shown == "-" else shown).removesuffix(" *").partition(" ")
    return Cell(value, interval, gap + " *" * has_star([[shown]]), spread, _tone(difference, how))


def _tone(difference: Difference | None, how: Figure) -> str:
    if difference is None or not difference.significant or difference.estimate.value is None:
        return ""
    if how.better is None:
        return "different"
    return "better" if (difference.estimate.value > 0) == (how.better == "up") else "worse"
