"""What probes find in each arm's features: overall for every k, and on each data set, next to the controls."""

from __future__ import annotations

from collections.abc import Sequence

from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.report.charts.chart import Axis, Chart, Series, grouped, mean_estimate, split
from scansion.report.data import ReportArm, ReportData
from scansion.study.compare.figures import figure

_CHANCE = 0.5


def probing_charts(data: ReportData) -> list[Chart]:
    """Accuracy by number of features, and by data set with all features; none if nothing was probed."""
    probed = [
        (index, arm, found)
        for index, arm in enumerate(data.sound)
        if (found := [one.sparse_probing for one in arm.results if one.sparse_probing])
    ]
    if not probed:
        return []
    arms, results = [(index, arm) for index, arm, _ in probed], [found for _, _, found in probed]
    first = results[0][0]
    ks = sorted(first.sae_top_k)
    overall = [
        [mean_estimate([one.sae_top_k[k] for one in found if k in one.sae_top_k]) for found in results] for k in ks
    ]
    overall.append([mean_estimate([one.sae_test_accuracy for one in found]) for found in results])
    by_set = [[_on_set(found, one.name) for found in results] for one in first.datasets]
    return [
        _bars(
            "probing",
            "Sparse probing",
            "Mean test accuracy over data sets; bars start at chance. Solid strokes: a probe on as many dimensions of the "
            "language model itself. Dotted strokes: a bag of words, which ignores word order.",
            [figure(name).label for name in (*(f"sae_top_{k}_test_accuracy" for k in ks), "sae_test_accuracy")],
            arms,
            overall,
            [*(first.lm_top_k[k].value for k in ks), first.lm_test_accuracy.value],
            [first.bag_test_accuracy.value] * (len(ks) + 1),
        ),
        _bars(
            "probing_by_data_set",
            f"By data set: {figure('sae_test_accuracy').label}",
            "Data sets in parentheses did not qualify: the language model does not beat the bag of words beyond chance there, "
            "so their scores say nothing about word order or context.",
            [one.name if one.qualified else f"({one.name})" for one in first.datasets],
            arms,
            by_set,
            [one.lm_test_accuracy.value for one in first.datasets],
            [one.bag_test_accuracy.value for one in first.datasets],
        ),
    ]


def _on_set(results: Sequence[SparseProbingResult], name: str) -> Estimate | None:
    return mean_estimate([one.sae_test_accuracy for result in results for one in result.datasets if one.name == name])


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
    # What all labels begin with is written once, as the axis title: long labels would be turned on a phone.
    start = groups[0].partition(", ")[0]
    shared = start if all(name.startswith(f"{start}, ") for name in groups) else ""
    labels = tuple(zip(middle, (name.removeprefix(f"{shared}, ") for name in groups), strict=True))
    for name, values, dash in (("llm_test_accuracy", lm, 0), ("bag_of_words_test_accuracy", bag, 1)):
        series.append(Series(figure(name).label, None, middle, values, "ticks", dash=dash))
    x = Axis(shared, range=(-0.5, len(groups) - 0.5), labels=labels)
    y = Axis("test accuracy")
    return Chart(key, title, note, x, y, tuple(series), base=_CHANCE, bar_width=0.8 / len(arms))
