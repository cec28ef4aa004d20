"""The table of any evaluation: a row for each run, a column for each figure, and what to know before reading it."""

from __future__ import annotations

from collections.abc import Sequence

from scansion.evals import evaluations, figures_in
from scansion.pipeline.run_results import RunResults
from scansion.report.tables.table import ONE_SAE_NOTE, ReportTable, row_name
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text

# Evaluations with tables of their own, which show more than their figures.
_SHOWN_APART = ("core", "sparse_probing", "position")


def other_tables(runs: Sequence[RunResults]) -> list[ReportTable]:
    """The table of every evaluation of these runs but those with tables of their own (core, probing, position)."""
    names = dict.fromkeys(name for run in runs for name in run.results if name not in _SHOWN_APART)
    return [table for name in names if (table := measured_table(name, runs)) is not None]


def measured_table(name: str, runs: Sequence[RunResults]) -> ReportTable | None:
    """The table of one evaluation; None if no run has a result of it."""
    results = {run.name: run.results[name] for run in runs if name in run.results}
    if not results:
        return None
    figures = {run: figures_in(result) for run, result in results.items()}
    names = list(dict.fromkeys(one for found in figures.values() for one in found))
    notes = [
        f"{run}: {result.status}: {'; '.join(result.reasons)}"
        for run, result in results.items()
        if result.status != "ok"
    ]
    notes += dict.fromkeys(note for result in results.values() for note in result.notes)
    rows = [
        [row_name(results[run]), *(figure_text(found.get(one), figure(one)) for one in names)]
        for run, found in figures.items()
        if found
    ]
    return ReportTable(
        name,
        evaluations.about()[name],
        ["run", *(figure(one).label for one in names)],
        [rows] if rows else [],
        [*notes, *([ONE_SAE_NOTE] if any("[" in cell for row in rows for cell in row[1:]) else [])],
    )
