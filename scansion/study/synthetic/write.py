"""A synthetic study on paper: tables for the terminal, ``synthetic.json``, ``synthetic.md`` and ``synthetic.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from scansion.evals.statistics import Estimate
from scansion.files import atomic_file, write_json
from scansion.study.compare.comparison import STAR_NOTE, Difference, paired_differences
from scansion.study.compare.tables import has_star
from scansion.study.synthetic.comparison import METRICS, Metric, StudySummary, VariantSummary, WorldSummary

Rows = list[list[str]]


def write_summary(summary: StudySummary, out: Path) -> list[Path]:
    """Write the three files to ``out`` and return their paths."""
    from scansion.study.synthetic.figure import overview  # matplotlib takes a while, which every command would wait for

    paths = [out / f"synthetic.{ending}" for ending in ("json", "md", "png")]
    write_json(paths[0], summary.model_dump(mode="json"))
    with atomic_file(paths[1]) as temporary:
        temporary.write_text(_markdown(summary), encoding="utf-8")
    with atomic_file(paths[2]) as temporary:
        overview(summary).savefig(temporary, format="png", dpi=150)
    return paths


def tables(summary: StudySummary) -> list[Table]:
    """Two tables per world: the figures, and the differences from the reference."""
    found: list[Table] = []
    for world in summary.worlds:
        for title, rows in _sections(summary, world):
            table = Table(title=escape(title), title_justify="left", title_style="bold", caption_justify="left")
            table.caption = STAR_NOTE if has_star(rows) else None
            for index, heading in enumerate(rows[0]):
                table.add_column(escape(heading), justify="right" if index else "left")
            for row in rows[1:]:
                table.add_row(*map(escape, row))
            found.append(table)
    return found


def notes(summary: StudySummary) -> list[str]:
    """What a reader must know to read the tables."""
    n = len(summary.seeds)
    lines = [
        f"Mean over {n} seed{'s' if n > 1 else ''}, each with its own world, initial weights and mask draws"
        + ("; ± is half the 95% t-interval." if n > 1 else "; one seed gives no interval."),
        "After a slash: the chance level, of random directions (MMCS) or of randomly paired features (matches). The mask "
        "of an unmasked SAE is flat, so that its match is at chance; a hard mask of fewer than half the positions is "
        "spurious on every unbound feature. Both hold by construction.",
    ]
    for world in summary.worlds:
        for variant in world.variants:
            lines += [
                f"Left out: {variant.name} in world {world.name!r}, seed {seed}: degenerate: {'; '.join(reasons)}."
                for seed, reasons in variant.degenerate.items()
            ]
    for name, settings in summary.variants.items():
        if settings["training"]:
            changes = ", ".join(f"{key} {value}" for key, value in settings["training"].items())
            lines.append(f"{name} is trained otherwise: {changes}.")
    return lines


def _sections(summary: StudySummary, world: WorldSummary) -> list[tuple[str, Rows]]:
    shown = {
        key: metric
        for key, metric in METRICS.items()
        if any(variant.estimates[key].value is not None for variant in world.variants)
    }
    headings = [metric.title for metric in shown.values()]
    figures = [["variant", *headings]]
    figures += [
        [variant.name, *(_figure(variant, key, metric) for key, metric in shown.items())] for variant in world.variants
    ]
    differences = [[f"less {summary.reference}", *headings]]
    tested = paired_differences(
        {
            variant.name: {key: dict(zip(summary.seeds, variant.by_seed[key], strict=True)) for key in shown}
            for variant in world.variants
        },
        summary.reference,
    )
    differences += [
        [variant.name, *(_difference(tested[variant.name].get(key), metric.digits) for key, metric in shown.items())]
        for variant in world.variants
        if variant.differences
    ]
    sections = [(f"World {world.name!r}", figures)]
    if len(differences) > 1:
        sections.append((f"World {world.name!r}: difference from {summary.reference}, paired by seed", differences))
    return sections


def _figure(variant: VariantSummary, key: str, metric: Metric) -> str:
    estimate = variant.estimates[key]
    if estimate.value is None:
        return "-"
    shown = f"{estimate.value:.{metric.digits}f}{_half_width(estimate, metric.digits)}"
    chance = variant.estimates[metric.chance].value if metric.chance else None
    return shown if chance is None else f"{shown} / {chance:.2f}"


def _difference(difference: Difference | None, digits: int) -> str:
    if difference is None or difference.estimate.value is None:
        return "-"
    mark = " *" if difference.significant else ""
    return f"{difference.estimate.value:+.{digits}f}{_half_width(difference.estimate, digits)}{mark}"


def _half_width(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def _markdown(summary: StudySummary) -> str:
    lines = [f"# Synthetic ground truth: {summary.name}", ""]
    lines += [f"- {note}" for note in notes(summary)]
    lines += [f"- {metric.title}: {metric.meaning}." for metric in METRICS.values()]
    lines.append(f"- Training: {', '.join(f'{key} {value}' for key, value in summary.training.items()) or 'defaults'}.")
    common = {
        key: value
        for key, value in summary.worlds[0].settings.items()
        if all(world.settings[key] == value for world in summary.worlds)
    }
    lines.append(f"- Every world: {_settings(common)}.")
    for world in summary.worlds:
        lines += ["", f"## World: {world.name}", ""]
        own = {key: value for key, value in world.settings.items() if key not in common}
        lines += [f"{_settings(own)}.", ""] if own else []
        for title, rows in _sections(summary, world):
            lines += ["", f"{title.partition(': ')[2].capitalize()}:", ""] if ": " in title else []
            lines += [*_markdown_table(rows), *(["", STAR_NOTE] if has_star(rows) else [])]
    return "\n".join(lines) + "\n"


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"

    return [line(rows[0]), "|---|" + "---:|" * (len(rows[0]) - 1), *(line(row) for row in rows[1:])]
