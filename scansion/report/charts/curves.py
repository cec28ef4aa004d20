"""How training went: loss, reconstruction and sparsity against tokens seen, from each run's ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scansion.report.charts.chart import Axis, Chart, Series, log_ticks, over_seeds
from scansion.report.data import ReportArm, ReportData

_CURVES = (
    ("loss", "Loss during training", "loss (log scale)", True),
    ("fve", "Reconstruction during training", "FVE of the batch", False),
    ("l0", "Sparsity during training", "L0 (log scale)", True),
)


def training_charts(data: ReportData) -> list[Chart]:
    """A chart for each of loss, FVE and L0."""
    charts: list[Chart] = []
    for name, title, y_title, log in _CURVES:
        lines = [line for index, arm in enumerate(data.sound) if (line := _line(arm, index, name))]
        if lines:
            note = "One line a run, on training batches; the band is the range over seeds."
            y = Axis(y_title, log, None if log else (0.0, 1.0), log_ticks(lines) if log else ())
            charts.append(Chart(f"training_{name}", title, note, Axis("tokens"), y, tuple(lines)))
    return charts


def _line(arm: ReportArm, index: int, name: str) -> Series | None:
    by_seed = [{line["tokens"]: line[name] for line in read_metrics(folder)} for folder in arm.folders.values()]
    by_seed = [one for one in by_seed if one]
    if not by_seed:
        return None
    tokens = sorted(set(by_seed[0]).intersection(*by_seed))
    mean, low, high = over_seeds([[one[token] for token in tokens] for one in by_seed])
    return Series(arm.name, index, tokens, mean, "line", low, high)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines a training run logged; none if it took no step."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
