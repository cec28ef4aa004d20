"""The table of any evaluation: a row for each run, a column for each figure, and what to know before reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from scansion.evals import evaluations, figures_in
from scansion.pipeline.run_results import RunResults
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text

MEASURED_NOTE = "Brackets hold 95% intervals of one trained SAE; they do not cover the variation between seeds."


# Evaluations with tables of their own, which show more than their figures.
_SHOWN_APART = ("core", "sparse_probing", "position")


@dataclass(frozen=True)
class MeasuredTable:
    """One evaluation of some runs, as text.

    Attributes:
        name: of the evaluation.
        about: what it measures.
        columns: headings.
        rows: cells of each run that has figures.
        notes: runs without figures, each with the reason, then what to know before reading the figures.
    """

    name: str
    about: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.name, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def other_tables(runs: Sequence[RunResults]) -> list[MeasuredTable]:
    """The table of every evaluation of these runs but those with tables of their own (core, probing, position)."""
    names = dict.fromkeys(name for run in runs for name in run.results if name not in _SHOWN_APART)
    return [table for name in names if (table := measured_table(name, runs)) is not None]


def measured_table(name: str, runs: Sequence[RunResults]) -> MeasuredTable | None:
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
    return MeasuredTable(
        name=name,
        about=evaluations.about()[name],
        columns=["run", *(figure(one).label for one in names)],
        rows=[
            [run, *(figure_text(found.get(one), figure(one)) for one in names)]
            for run, found in figures.items()
            if found
        ],
        notes=[*notes, *([MEASURED_NOTE] if names else [])],
    )
