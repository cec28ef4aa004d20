"""Growth as a picture: time and memory against each thing that grows, on logarithmic axes, with the exponents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.training_tables import Result, groups, shown
from scansion.palette import COLOURS

TITLES = {
    "d_sae": "features",
    "n_positions": "positions",
    "bands": "bands",
    "n_saes": "SAEs trained together",
    "batch_tokens": "tokens per step",
}
MARKERS = ("o", "s", "^")


def growth(result: Result) -> Figure:
    """One axis per column; time above, memory below where it was measured."""
    axes_found = groups(result)
    rows = 2 if any("memory" in part for part in axes_found.values()) else 1
    figure = Figure(figsize=(3.0 * len(axes_found), 2.9 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, len(axes_found), sharey="row", sharex="col", squeeze=False)
    for column, (name, part) in enumerate(axes_found.items()):
        above = panels[0, column]
        for index, (form, seconds) in enumerate(part["seconds"].items()):
            _line(above, part["values"], [1e3 * own for own in seconds], form, part["time_exponents"][form], index)
        above.set_title(TITLES[name], fontsize=10)
        if rows == 2 and (memory := part.get("memory")):
            found = [own / 1e6 for own in memory["bytes"]]
            _line(panels[1, column], part["values"], found, memory["form"], memory["exponent"], 0)
        for axis in panels[:, column]:
            _dress(axis, part["values"])
        panels[-1, column].set_xlabel(name)
    panels[0, 0].set_ylabel("milliseconds per step")
    if rows == 2:
        panels[1, 0].set_ylabel("peak memory, MB")
    figure.suptitle("In brackets the exponent that fits all points", fontsize=9, color="0.3")
    return figure


def _line(
    axis: Axes, values: Sequence[float], found: Sequence[float], form: str, power: dict[str, float], index: int
) -> None:
    label = f"{form} ({shown(power['fitted'])})"
    axis.plot(values, found, color=COLOURS[index], marker=MARKERS[index], markersize=4, linewidth=1.4, label=label)


def _dress(axis: Axes, values: Sequence[float]) -> None:
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(list(values)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(_short))
    axis.tick_params(labelsize=8)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_lines():
        axis.legend(fontsize=8, frameon=False)


def _short(value: float, _: Any) -> str:
    return f"{value:g}" if value < 10_000 else f"{value / 1000:g}k"
