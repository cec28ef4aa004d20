"""The table of sparse probing: one row a data set and run, so that no accuracy stands without its controls."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from scansion.evals.probing.result import DatasetResult, SparseProbingResult
from scansion.pipeline.run_results import RunResults
from scansion.report.tables.summary import shown_ks, with_gain

PROBING_NOTE = (
    "Probes by data set: the accuracy of the SAE and, in parentheses, its gain over the untrained SAE; 'found' is the "
    "smallest gain of the probe on all features that would have been found in 4 of 5 draws of test texts. A set qualifies "
    "if the LM beats the bag of words beyond chance; on one that does not, scores say nothing of order or context."
)


def probing_table(runs: Sequence[RunResults]) -> Table | None:
    """The table for a terminal; None if nothing was probed."""
    results = [run.sparse_probing for run in runs if run.sparse_probing is not None]
    if not results:
        return None
    ks = shown_ks(results)
    table = Table()
    for index, column in enumerate(
        ("data set", "run", "texts", "bag", "LM", "qualified", *(f"k={k}" for k in ks), "all", "found")
    ):
        table.add_column(column, justify="left" if index < 2 else "right")
    for sets in zip(*(one.datasets for one in results), strict=True):
        for result, one in zip(results, sets, strict=True):
            table.add_row(*(Text(cell) for cell in _row(result, one, ks, is_first=result is results[0])))
        table.add_section()
    return table


def _row(result: SparseProbingResult, one: DatasetResult, ks: Sequence[int], *, is_first: bool) -> list[str]:
    shared = [""] * 4
    if is_first:
        texts = "/".join(f"{max(sizes):,}" for sizes in zip(*((t.n_train, t.n_test) for t in one.tasks), strict=True))
        values = (one.bag_test_accuracy.value, one.lm_test_accuracy.value)
        shared = [texts, *("-" if v is None else f"{v:.3f}" for v in values), "yes" if one.qualified else "no"]
    found = one.gain_test_accuracy.detectable
    return [
        one.name if is_first else "",
        result.sae,
        *shared,
        *(with_gain(one.sae_top_k[k], one.gain_top_k[k]) for k in ks),
        with_gain(one.sae_test_accuracy, one.gain_test_accuracy),
        "-" if found is None else f"{found:.3f}",
    ]
