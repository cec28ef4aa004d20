"""A comparison as tables: for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scansion.evals import Figure
from scansion.evals.statistics import Estimate
from scansion.files import atomic_file
from scansion.progress import printable
from scansion.records import write_json
from scansion.study.by_text import write_by_text
from scansion.study.compare.comparison import (
    STAR_NOTE,
    UNEQUAL_L0_NOTE,
    ComparedArm,
    Comparison,
    Difference,
    family_wise,
)
from scansion.study.compare.figures import figure, is_known
from scansion.study.final_info import ArmInfo
from scansion.text_table import TextTable

HOW_TO_READ = "Means over seeds with 95% intervals. Differences are paired by seed."

ONE_SEED = (
    "One seed per run: these figures and differences do not show how much seeds vary. The report gives intervals over contexts "
    "and test texts."
)


def terminal_tables(comparison: Comparison, *, every: bool = False) -> list[TextTable]:
    """The figures, and then the differences from the baseline.

    Args:
        comparison: the arms.
        every: all figures instead of the headline's.
    """
    return [
        TextTable(
            rows[0], [rows[1:]], left=2, title=title, caption=" ".join(legend(comparison, rows, every=every)) or None
        )
        for title, rows in _both(comparison, every)
    ]


def lines_below(comparison: Comparison) -> list[str]:
    """What goes with the tables: runs set apart, caveats, Pareto fronts, what could have been detected."""
    if not comparison.arms:
        lines = ["No run can be compared."]
    else:
        lines = [ONE_SEED if all(len(arm.seeds) < 2 for arm in comparison.arms) else HOW_TO_READ]
    lines += _coverage(comparison)
    lines += [f"{name}: {why}" for name, why in comparison.set_apart.items()]
    lines += [f"{arm.name}: {'; '.join(arm.caveats)}" for arm in comparison.arms if arm.caveats]
    lines += [f"{arm.name}: no {name}: {why}" for arm in comparison.arms for name, why in arm.not_applicable.items()]
    if unknown := [name for name in shown_figures(comparison, every=True) if not is_known(name)]:
        lines.append(
            f"{', '.join(unknown)}: measured by a plugin that is not loaded here; load it with --plugin FILE.py"
        )
    lines += _detectable_line(comparison)
    shown = {(front.x, front.y): (front.arms, front.near) for front in comparison.fronts}
    for front in comparison.fronts:
        if shown.get((front.x, figure(front.y).superseded_by or "")) == (front.arms, front.near):
            continue  # the same runs on a figure that says more
        near = f" Within seed noise of it: {', '.join(front.near)}." if front.near else ""
        lines.append(
            f"Pareto front of higher {figure(front.y).label} and lower {figure(front.x).label}: {', '.join(front.arms)}.{near}"
        )
    return lines + comparison.notes


def _coverage(comparison: Comparison) -> list[str]:
    """What the intervals of headline figures cover: seeds and text, or seeds alone."""
    several = [arm for arm in comparison.arms if len(arm.seeds) > 1]
    shown = shown_figures(comparison) if several else []
    alone = [name for name in shown if any(name in arm.seeds_alone for arm in several)]
    if not alone:
        return ["Intervals cover other seeds and other text (documents, test texts)."] if shown else []
    if len(alone) == len(shown):
        return ["Intervals cover other seeds, on this text."]
    labels = ", ".join(figure(name).label for name in alone)
    return [
        f"Intervals cover other seeds and other text (documents, test texts); those of {labels} other seeds on this text."
    ]


def shown_figures(comparison: Comparison, *, every: bool = False) -> list[str]:
    """Names of the figures that a table shows: those of a headline, or every one; only what some arm has a value of."""
    known = {name for arm in comparison.arms for name, one in arm.figures.items() if one.value is not None}
    in_order = dict.fromkeys(name for arm in comparison.arms for name in arm.figures)
    return [name for name in in_order if name in known and (every or figure(name).headline)]


def _detectable_line(comparison: Comparison) -> list[str]:
    """How small a difference of each headline figure could have been found; nothing at one seed."""
    found: list[str] = []
    for name in shown_figures(comparison):
        how = figure(name)
        sizes = [
            one.detectable * how.scale
            for arm in comparison.arms
            if (one := arm.differences.get(name)) is not None and one.detectable is not None
        ]
        if sizes:
            least, most = (f"{size:.{how.digits}f}" for size in (min(sizes), max(sizes)))
            found.append(f"{how.label} {least if least == most else f'{least} to {most}'}")
    if not found:
        return []
    return [
        f"Smallest true difference that 4 of 5 such studies would detect (lowest to highest over runs): {'; '.join(found)}."
    ]


def write_comparison(comparison: Comparison, infos: Mapping[str, ArmInfo], folder: Path) -> list[Path]:
    """Write ``comparison.md`` (every figure), ``comparison.json`` and ``by_text.json`` to ``folder``; returns their paths."""
    parts: list[str] = []
    for every in (False, True):
        for title, rows in _both(comparison, every):
            parts += [
                f"## {title}{', every figure' if every else ''}",
                "",
                # One row per figure where there are very many.
                *_markdown(list(zip(*rows, strict=True)) if every else rows),
                "",
                *(line for note in legend(comparison, rows, every=every) for line in (note, "")),
            ]
    text = [f"# Comparison with {comparison.baseline}" if comparison.baseline else "# Comparison", ""]
    text += [line for below in lines_below(comparison) for line in (below, "")] + parts
    with atomic_file(folder / "comparison.md") as temporary:
        temporary.write_text(printable("\n".join(text).rstrip()) + "\n", encoding="utf-8")
    write_json(
        folder / "comparison.json",
        {
            **comparison.model_dump(mode="json"),
            "runs": {name: one.model_dump(mode="json") for name, one in infos.items()},
            "shown": {
                name: {"label": how.label, "scale": how.scale, "digits": how.digits, "headline": how.headline}
                for name in shown_figures(comparison, every=True)
                if (how := figure(name))
            },
        },
    )
    by_text = write_by_text(folder, {name: one.by_text for name, one in infos.items()})
    return [folder / "comparison.md", folder / "comparison.json", *([by_text] if by_text else [])]


def _both(comparison: Comparison, every: bool) -> list[tuple[str, list[list[str]]]]:
    """Title -> heading and rows, of the figures and of the differences; empty tables are left out."""
    arms = comparison.arms
    shown = shown_figures(comparison, every=every)
    headings = ["run", "features", *(figure(name).label for name in shown)]
    figures = [
        [arm.label, _width(arm), *(figure_text(arm.figures.get(name), figure(name)) for name in shown)] for arm in arms
    ]
    differences = [
        [arm.label, _width(arm), *(difference_text(arm.differences.get(name), figure(name)) for name in shown)]
        for arm in arms
        if arm.differences
    ]
    tables = [("Figures", [headings, *figures])] if figures else []
    return tables + ([(f"Differences from {comparison.baseline}", [headings, *differences])] if differences else [])


def figure_text(estimate: Estimate | None, how: Figure, sign: str = "") -> str:
    """``0.885 [0.881, 0.889]``, in the metric's own unit, or with ``sign="+"`` ``+0.885``; ``-`` where there is none."""
    if estimate is None or estimate.value is None:
        return "-"
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (None if v is None else f"{v * how.scale:{sign}z.{how.digits}f}" for v in ends)
    return str(value) if low is None else f"{value} [{low}, {high}]"


def difference_text(difference: Difference | None, how: Figure) -> str:
    """``-0.064 [-0.070, -0.058] † *``; what the marks mean is in ``UNEQUAL_L0_NOTE`` and ``STAR_NOTE``."""
    if difference is None:
        return "-"
    marks = " †" * difference.unequal_l0 + " *" * difference.significant
    return figure_text(difference.estimate, how, "+") + marks


def legend(comparison: Comparison, rows: Sequence[Sequence[str]], *, every: bool = False) -> list[str]:
    """What the marks of a table mean, and how often a star may be there by chance; empty for a table without marks."""
    notes = [STAR_NOTE] if has_star(rows) else []
    tested = [
        name
        for name in shown_figures(comparison, every=every)
        if any(one.differences[name].p is not None for one in comparison.arms if name in one.differences)
    ]
    if notes and len(tested) > 1:
        notes.append(
            f"{len(tested)} figures are tested. If no run differed, one would still expect stars at {family_wise(len(tested))}."
        )
    if any("†" in cell for row in rows for cell in row):
        notes.append(UNEQUAL_L0_NOTE)
    return notes + control_notes(comparison, shown_figures(comparison, every=every))


def control_notes(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """What the controls of marked differences say: :func:`gain_notes` and :func:`training_notes`."""
    return gain_notes(comparison, names) + training_notes(comparison, names)


def training_notes(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """For each figure with a marked difference: what it is of the same SAEs before training, where that is known."""
    notes: list[str] = []
    for how in (figure(name) for name in names):
        found = {arm.name: arm.differences.get(how.name) for arm in comparison.arms}
        marked = {name for name, one in found.items() if one is not None and one.significant}
        if how.before_training is None or not marked:
            continue
        chosen = [arm for arm in comparison.arms if arm.name in {*marked, comparison.baseline}]
        before = [(arm.name, arm.figures.get(how.before_training)) for arm in chosen]
        known = [f"{name} {figure_text(one, how)}" for name, one in before if one is not None and one.value is not None]
        if known:
            notes.append(
                f"A marked difference in {how.label} does not show by itself that training made features more specialised. "
                f"Before training it is: {'; '.join(known)}."
            )
    return notes


def gain_notes(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """For each gain over a control with a marked difference: how much of the difference is not the control's."""
    notes: list[str] = []
    for how in (figure(name) for name in names):
        if how.gain_of is None:
            continue
        measured = [(arm.name, arm.differences) for arm in comparison.arms if how.name in arm.differences]
        marked = [(arm, found.get(how.gain_of)) for arm, found in measured if found[how.name].significant]
        own = [f"{arm} {figure_text(one.estimate, how, '+')}" for arm, one in marked if one is not None]
        if own:
            notes.append(
                f"A marked difference in {how.label} may be its control's. Without the control ({figure(how.gain_of).label}): "
                f"{'; '.join(own)}."
            )
    return notes


def has_star(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a cell of a table is marked, so that ``STAR_NOTE`` belongs below it."""
    return any(cell.endswith(" *") for row in rows for cell in row)


def _width(arm: ComparedArm) -> str:
    return "-" if arm.d_sae is None else f"{arm.d_sae:,}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], ["---"] * len(escaped[0]), *escaped[1:])]
