"""The tables of a page, as cells of text: figures with intervals and differences, and verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from scansion.evals import Figure
from scansion.report.data import ReportArm, ReportData
from scansion.study.compare.comparison import ComparedArm, Difference
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import difference_text, figure_text, has_star, shown_figures
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
    return _table(data, shown_figures(data.comparison))


def full_table(data: ReportData) -> tuple[list[str], list[Row]]:
    """Every figure: a row for each, a column for each arm."""
    names = shown_figures(data.comparison, every=True)
    _, rows = _table(data, names)
    turned = [Row(figure(name).label, "", [row.cells[index] for row in rows]) for index, name in enumerate(names)]
    return [row.name for row in rows], turned


def verdicts(data: ReportData) -> list[tuple[str, str]]:
    """(arm, sentence) on the metric that the plan says decides; empty for loose runs."""
    if data.plan is None:
        return []
    name, smallest = data.plan.primary_metric, data.plan.margin(data.plan.primary_metric)
    return [
        (arm.name, f"{figure(name).label}: {verdict(arm.differences[name], name, smallest)}.")
        for arm in data.comparison.arms
        if name in arm.differences
    ]


def _table(data: ReportData, names: list[str]) -> tuple[list[str], list[Row]]:
    compared = {arm.name: arm for arm in data.comparison.arms}
    rows = [Row(arm.name, _about(arm), [_cell(arm, compared[arm.name], name) for name in names]) for arm in data.sound]
    return [figure(name).label for name in names], rows


def _about(arm: ReportArm) -> str:
    config, n = arm.results[0].core.sae_config, len(arm.results)
    mask = "no mask" if not config.mask.has_weights else f"mask {config.mask.family}"
    return f"{config.architecture} {config.d_sae:,}, {mask}, {n} seed{'' if n == 1 else 's'}" + "".join(
        f"; {remark}" for remark in arm.info.remarks
    )


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
