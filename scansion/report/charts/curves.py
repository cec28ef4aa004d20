"""How training went: loss, reconstruction and sparsity against tokens seen, from each run's ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence

from scansion.report.charts.chart import Axis, Chart, Series, log_ticks, over_seeds
from scansion.report.data import ReportArm, ReportData
from scansion.study.compare.figures import figure
from scansion.training.run_folder import read_metrics

_CURVES = ("loss", "fve", "l0")


def training_charts(data: ReportData) -> list[Chart]:
    """A chart for each of loss, FVE and L0."""
    charts: list[Chart] = []
    for name in _CURVES:
        label = figure(name).label
        lines = [line for index, arm in enumerate(data.sound) if (line := _line(arm, index, name))]
        if lines:
            note = f"Measured on all tokens of training batches, outliers among them. One line per run.{data.band_note}"
            y = Axis(label, range=(0.0, 1.0)) if name == "fve" else _positive(label, lines)
            title = f"{label[0].upper()}{label[1:]} during training"
            charts.append(Chart(f"training_{name}", title, note, Axis("tokens"), y, tuple(lines)))
    return charts


def _positive(title: str, lines: Sequence[Series]) -> Axis:
    """An axis that is logarithmic only if values differ by a factor of two or more; a narrow range would have no ticks."""
    values = [value for line in lines for value in line.y if value is not None]
    if not values or min(values) <= 0 or max(values) < 2 * min(values):
        return Axis(title)
    return Axis(f"{title} (log scale)", log=True, labels=log_ticks(lines))


def _line(arm: ReportArm, index: int, name: str) -> Series | None:
    logged = [read_metrics(folder) for folder in arm.folders.values()]
    by_seed = [{line["tokens"]: line[name] for line in lines} for lines in logged]
    by_seed = [one for one in by_seed if one]
    if not by_seed:
        return None
    tokens = sorted(set(by_seed[0]).intersection(*by_seed))
    mean, low, high = over_seeds([[one[token] for token in tokens] for one in by_seed])
    return Series(arm.name, index, tokens, mean, "line", low, high)
