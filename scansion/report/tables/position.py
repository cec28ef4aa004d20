"""The table of position figures: one row a run and state, so that no figure stands without its control."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from scansion.evals.position import PositionResult, excess_over_unmasked
from scansion.evals.position.replacement import ReplacedFigures
from scansion.evals.position.result import StateFigures
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults

_COLUMNS = ("run", "state", "L0", "information, mbit", "of entropy", "positional", "AUROC", "overlap", "retention")
_MOVED_COLUMNS = ("stay", "move")

POSITION_NOTE = (
    "Position: information of firing on position above that of contexts turned as rings; 'positional' is the share of "
    "features for which it is significant. AUROC and overlap of the mask and retention inside it: what they show with a "
    "mask in force they show by construction; what counts is the excess over permuted masks, and what is left when the "
    "mask is lifted. When the text is moved, 'stay' is the share of positional features that go on firing at the old "
    "position, 'move' of those that go with the text. 'start' is the SAE before training. See docs/position.md."
)


def position_columns() -> list[str]:
    """Headings of the table."""
    return [*_COLUMNS, *_MOVED_COLUMNS]


def position_rows(runs: Sequence[RunResults]) -> list[list[list[str]]]:
    """For each run whose position figures are known, its rows of cells; brackets hold 95% intervals over documents."""
    results = [run.position for run in runs if run.position is not None]
    found: list[list[list[str]]] = []
    for result, over in zip(results, excess_over_unmasked(results), strict=True):
        rows = [_row(result, name, figures) for name, figures in result.states.items()]
        if result.excess_specialisation is not None:
            rows.append(["", "over permuted", "", _mbit(result.excess_specialisation)])
        if over.value is not None:
            rows.append(["", "over unmasked", "", f"{1000 * over.value:.2f}"])
        found.append([row + [""] * (len(position_columns()) - len(row)) for row in rows])
    return found


def position_table(runs: Sequence[RunResults]) -> Table | None:
    """The table for a terminal; None if position was not measured."""
    by_run = position_rows(runs)
    if not by_run:
        return None
    table = Table()
    for index, column in enumerate(position_columns()):
        table.add_column(column, justify="left" if index < 2 else "right")
    for rows in by_run:
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        table.add_section()
    return table


def _row(result: PositionResult, name: str, figures: StateFigures) -> list[str]:
    shares = (figures.information_share, figures.significant_share)
    moved = result.replacement.states.get(name) if result.replacement else None
    state = name.replace("_", " ") + ("" if result.mask == "own" else " (mask drawn)")
    return [
        result.sae if name == "in_force" else "",
        state,
        "-" if figures.l0 is None else f"{figures.l0:.1f}",
        _mbit(figures.information),
        *("-" if share is None else f"{share:.1%}" for share in shares),
        *("-" if one.value is None else f"{one.value:.3f}" for one in (figures.auroc, figures.overlap)),
        "-" if figures.retention.value is None else str(figures.retention),
        *("-" if share is None else f"{share:.1%}" for share in _shares(moved)),
    ]


def _mbit(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{1000 * estimate.value:.2f} [{1000 * estimate.low:.2f}, {1000 * estimate.high:.2f}]"


def _shares(moved: ReplacedFigures | None) -> tuple[float | None, float | None]:
    return (None, None) if moved is None else (moved.stay_share, moved.move_share)
