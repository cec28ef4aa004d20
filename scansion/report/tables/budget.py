"""The table of budgets: the four ways in which SAEs may be of equal size. Few SAEs are equal in more than one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scansion.pipeline.run_results import RunResults
from scansion.report.tables.table import ReportTable, row_name
from scansion.study.compare.figures import figure


def budget_table(runs: Sequence[RunResults]) -> ReportTable | None:
    """A row for each run with position figures; None if no run has them."""
    results = [run.position for run in runs if run.position is not None]
    if not results:
        return None
    rows: list[list[str]] = []
    for one in results:
        budget, l0 = one.budget, np.array(one.budget.l0_by_position)
        rows.append(
            [
                row_name(one),
                f"{budget.width:,}",
                f"{budget.available_mean:,.0f} [{budget.available_min:,}, {budget.available_max:,}]",
                f"{budget.operations_per_token / 1e6:.2f} M, {budget.execution}",
                f"{budget.operations_per_token / results[0].budget.operations_per_token:.2f}",
                f"{l0.mean():.1f} [{l0.min():.1f}, {l0.max():.1f}]",
            ]
        )
    return ReportTable(
        "budgets",
        "Four ways to measure the size of an SAE. Runs that are equal in one way usually differ in the others.",
        ["run", "features", "usable per position", "operations per token", "relative to first run", figure("l0").label],
        [rows],
        [
            "Usable: features that the mask allows at a position. Usable and L0: mean over positions [lowest, highest]. "
            "Operations: multiplications and additions of one forward pass, executed as in training."
        ],
    )
