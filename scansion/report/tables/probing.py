"""The table of sparse probing: one row per data set and run, so that no accuracy stands without its controls."""

from __future__ import annotations

from collections.abc import Sequence

from scansion.evals.probing.result import DatasetResult, SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.report.tables.table import ReportTable, row_name
from scansion.study.compare.figures import figure

_SHOWN_KS = (1, 5, 20)


def probing_table(runs: Sequence[RunResults], *, every_k: bool = False) -> ReportTable | None:
    """A group of rows for each data set; None if nothing was probed.

    Args:
        runs: one row each in every group.
        every_k: a column for every number of features probed, which is wider than most terminals.
    """
    results = [run.sparse_probing for run in runs if run.sparse_probing is not None]
    if not results:
        return None
    ks = sorted(results[0].sae_top_k) if every_k else shown_ks(results)
    probes = [f"sae_top_{k}_test_accuracy" for k in ks]
    names = (
        "bag_of_words_test_accuracy",
        "llm_test_accuracy",
        "random_sae_test_accuracy",
        *probes,
        "sae_test_accuracy",
    )
    labels = [figure(name).label for name in names]
    return ReportTable(
        "probing, by data set",
        "Test accuracy of probes on each data set, next to a bag of words, the language model and untrained SAEs.",
        ["data set", "run", "texts", "qualified", *labels, "detectable gain"],
        [
            [_row(result, one, ks, is_first=result is results[0]) for result, one in zip(results, sets, strict=True)]
            for sets in zip(*(result.datasets for result in results), strict=True)
        ],
        [
            "Parentheses hold the gain over untrained SAEs with its 95% interval over test texts. The detectable gain of "
            "the probe on all features would be found in 4 of 5 draws of test texts; a smaller one may be missed.",
            "A data set qualifies if the language model beats the bag of words beyond chance. Scores on any other say nothing "
            "about word order or context. Texts: for training/test, in the largest of its tasks.",
        ],
        left=2,
    )


def _row(result: SparseProbingResult, one: DatasetResult, ks: Sequence[int], *, is_first: bool) -> list[str]:
    shared = [""] * 4
    if is_first:
        texts = "/".join(f"{max(sizes):,}" for sizes in zip(*((t.n_train, t.n_test) for t in one.tasks), strict=True))
        values = (one.bag_test_accuracy.value, one.lm_test_accuracy.value)
        shared = [texts, "yes" if one.qualified else "no", *map(_number, values)]
    return [
        one.name if is_first else "",
        row_name(result),
        *shared,
        _number(one.random_test_accuracy.value),
        *(with_gain(one.sae_top_k[k], one.gain_top_k[k]) for k in ks),
        with_gain(one.sae_test_accuracy, one.gain_test_accuracy),
        _number(one.gain_test_accuracy.detectable),
    ]


def with_gain(accuracy: Estimate, gain: Estimate) -> str:
    """A probe's accuracy, and what it is above that of untrained SAEs, with its interval."""
    if accuracy.value is None or gain.value is None or gain.low is None or gain.high is None:
        return "-"
    return f"{accuracy.value:.3f} ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"


def shown_ks(results: Sequence[SparseProbingResult]) -> list[int]:
    """The numbers of features whose probes a table shows."""
    found = {k for one in results for k in one.sae_top_k}
    return sorted(found & set(_SHOWN_KS)) or sorted(found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
