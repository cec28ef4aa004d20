"""What an arm gives for what it costs: reconstruction and loss recovered against active features and training time."""

from __future__ import annotations

from dataclasses import replace

from scansion.evals.statistics import Estimate
from scansion.report.charts.chart import Axis, Chart, Series, split
from scansion.report.data import ReportArm, ReportData
from scansion.study.compare.figures import figure


def pareto_charts(data: ReportData) -> list[Chart]:
    """A chart for each front of the comparison that has two arms to tell apart, by their costs as tables show them."""
    fronts = {(front.x, front.y): front.arms for front in data.comparison.fronts}
    charts = [
        replace(chart, folded=(x, figure(y).superseded_by) in fronts)
        for (x, y), arms in fronts.items()
        if (chart := _chart(data, x, y, arms))
    ]
    return sorted(charts, key=lambda chart: chart.folded)


def _chart(data: ReportData, x: str, y: str, on_front: list[str]) -> Chart | None:
    series: list[Series] = []
    corners: list[tuple[float, float]] = []
    for index, arm in enumerate(data.sound):
        across, up = _estimate(arm, x), _estimate(arm, y)
        if across.value is None or up.value is None:
            continue
        if len(arm.results) > 1 and x in arm.info.values:
            series.append(Series(arm.name, index, arm.info.values[x], arm.info.values[y], "faint points"))
        (xs, x_low, x_high), (ys, low, high) = split([across]), split([up])
        series.append(Series(arm.name, index, xs, ys, "points", low, high, x_low, x_high))
        if arm.name in on_front:
            corners.append((across.value, up.value))
    if len({f"{one.x[0]:.3g}" for one in series if one.kind == "points"}) < 2:
        return None
    corners.sort()
    front = Series("front", None, [one[0] for one in corners], [one[1] for one in corners], "front")
    title = f"{figure(y).label} against {figure(x).label}"
    return Chart(
        key=f"pareto_{y}_{x}",
        title=title,
        note="Better is up and to the left. The dotted line joins the runs that no other run beats on both.",
        x=Axis(figure(x).label),
        y=Axis(figure(y).label),
        series=(front, *series),
    )


def _estimate(arm: ReportArm, name: str) -> Estimate:
    found = arm.figures().get(name)
    if found is not None:
        return found
    return Estimate(value=arm.info.costs.get(name), low=None, high=None)
