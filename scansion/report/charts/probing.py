"""What probes find in each arm's features: overall for every k, and on each data set, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scansion.evals.probing.result import DatasetResult, SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.report.charts.chart import Axis, Chart, Series, grouped, split
from scansion.report.data import ReportArm, ReportData

_CHANCE = 0.5
Probed = SparseProbingResult | DatasetResult
Get = Callable[[SparseProbingResult], Probed | None]


def probing_charts(data: ReportData) -> list[Chart]:
    """Accuracy by number of features, and by data set with all features; none if nothing was probed."""
    arms = [(index, arm) for index, arm in enumerate(data.sound) if _results(arm)]
    if not arms:
        return []
    first = _results(arms[0][1])[0]
    ks = sorted(first.sae_top_k)
    names = [one.name for one in first.datasets]
    overall = [_by_k(arms, k) for k in ks] + [[_of(arm, _whole, lambda one: one.sae_test_accuracy) for _, arm in arms]]
    by_set = [[_of(arm, _set(name), lambda one: one.sae_test_accuracy) for _, arm in arms] for name in names]
    return [
        _bars(
            "probing",
            "Sparse probing",
            "Mean accuracy over data sets of a probe on the k best features; bars begin at chance. Strokes: the LM's own "
            "dimensions (k best, or all) and, dotted, a bag of words, which knows no order.",
            [f"k={k}" for k in ks] + ["all"],
            arms,
            overall,
            [*(first.lm_top_k[k].value for k in ks), first.lm_test_accuracy.value],
            [first.bag_test_accuracy.value] * (len(ks) + 1),
        ),
        _bars(
            "probing_by_data_set",
            "Probing by data set, all features",
            "A set in parentheses did not qualify: there the LM does not beat the bag of words beyond chance, so that scores "
            "say nothing of order or context.",
            [one.name if one.qualified else f"({one.name})" for one in first.datasets],
            arms,
            by_set,
            [one.lm_test_accuracy.value for one in first.datasets],
            [one.bag_test_accuracy.value for one in first.datasets],
        ),
    ]


def _bars(
    key: str,
    title: str,
    note: str,
    groups: list[str],
    arms: Sequence[tuple[int, ReportArm]],
    estimates: list[list[Estimate | None]],
    lm: list[float | None],
    bag: list[float | None],
) -> Chart:
    series: list[Series] = []
    for place, (index, arm) in enumerate(arms):
        values, low, high = split([group[place] for group in estimates])
        series.append(Series(arm.name, index, grouped(len(groups), len(arms), place), values, "bars", low, high))
    middle = [float(number) for number in range(len(groups))]
    series += [Series("LM", None, middle, lm, "ticks"), Series("bag of words", None, middle, bag, "ticks", dash=1)]
    labels = tuple(zip(middle, groups, strict=True))
    return Chart(
        key,
        title,
        note,
        Axis("", range=(-0.5, len(groups) - 0.5), labels=labels),
        Axis("test accuracy"),
        tuple(series),
        base=_CHANCE,
        bar_width=0.8 / len(arms),
    )


def _results(arm: ReportArm) -> list[SparseProbingResult]:
    return [one.sparse_probing for one in arm.results if one.sparse_probing]


def _whole(result: SparseProbingResult) -> Probed | None:
    return result


def _set(name: str) -> Get:
    return lambda result: next((one for one in result.datasets if one.name == name), None)


def _by_k(arms: Sequence[tuple[int, ReportArm]], k: int) -> list[Estimate | None]:
    nothing = Estimate(value=None, low=None, high=None)
    return [_of(arm, _whole, lambda one: one.sae_top_k.get(k, nothing)) for _, arm in arms]


def _of(arm: ReportArm, where: Get, get: Callable[[Probed], Estimate]) -> Estimate | None:
    """Over seeds; of one seed, its own interval over test texts."""
    found = [get(part) for one in _results(arm) if (part := where(one)) is not None]
    if len(found) <= 1:
        return found[0] if found else None
    return Estimate.of_seeds([one.value for one in found if one.value is not None])
