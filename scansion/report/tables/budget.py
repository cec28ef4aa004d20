"""The table of budgets: the four ways in which SAEs may be of equal size, for they are seldom equal in more than one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from scansion.pipeline.run_results import RunResults

_COLUMNS = ("run", "features", "available at a position", "operations a token", "of the first", "L0 by position")

BUDGET_NOTE = (
    "Budgets: features in all; those that may fire at a position, mean [least, most]; operations of a forward pass as the "
    "SAE is trained; active features, mean over positions [least, most]. Runs that are equal in one way seldom are in another."
)


def budget_columns() -> list[str]:
    """Headings of the table."""
    return list(_COLUMNS)


def budget_rows(runs: Sequence[RunResults]) -> list[list[str]]:
    """A row for each run whose position figures are known."""
    results = [run.position for run in runs if run.position is not None]
    rows: list[list[str]] = []
    for one in results:
        budget, l0 = one.budget, np.array(one.budget.l0_by_position)
        available = f"{budget.available_mean:,.0f} [{budget.available_min:,}, {budget.available_max:,}]"
        rows.append(
            [
                one.sae,
                f"{budget.width:,}",
                available,
                f"{budget.operations_per_token / 1e6:.2f} M, {budget.execution}",
                f"{budget.operations_per_token / results[0].budget.operations_per_token:.2f}",
                f"{l0.mean():.1f} [{l0.min():.1f}, {l0.max():.1f}]",
            ]
        )
    return rows


def budget_table(runs: Sequence[RunResults]) -> Table | None:
    """The table for a terminal; None if position was not measured."""
    rows = budget_rows(runs)
    if not rows:
        return None
    table = Table()
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
