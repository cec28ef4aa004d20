"""The same charts on paper: PDF and PNG files next to the page, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from scansion.files import atomic_file
from scansion.palette import COLOURS
from scansion.report.charts import Chart, Series
from scansion.report.maps import Maps
from scansion.report.plotly_form import colour_of

_DASHES = ("-", "--", ":")
_MARKERS = ("o", "s", "D")
_OVERVIEW = (
    "pareto_fve_without_outliers_l0",
    "pareto_fve_without_outliers_train_seconds",
    "specialisation",
    "probing",
    "fve_without_outliers_by_position",
    "training_fve",
)


def write_figures(charts: Sequence[Chart], maps: Sequence[Maps], arms: Sequence[str], folder: Path) -> list[Path]:
    """Write each chart, the most telling ones in one overview, and the maps, as PDF and PNG; returns the paths."""
    figures = {chart.key: _alone(chart, arms) for chart in charts}
    if chosen := [chart for key in _OVERVIEW for chart in charts if chart.key == key]:
        figures["overview"] = overview(chosen, arms)
    if maps:
        figures["maps"] = _maps(maps)
    paths: list[Path] = []
    # Text stays text in the PDF, and no date is written, so that the same figure comes out the same.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for key, figure in figures.items():
            figure.draw_without_rendering()  # the layout, found once for both
            figure.set_layout_engine("none")
            for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
                path = folder / f"{key}.{ending}"
                with atomic_file(path) as temporary:
                    figure.savefig(temporary, format=ending, dpi=130, metadata=metadata)
                paths.append(path)
    return paths


def overview(charts: Sequence[Chart], arms: Sequence[str]) -> Figure:
    """All charts in one figure, two per row."""
    rows = -(-len(charts) // 2)
    figure = Figure(figsize=(12, 3.6 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis, chart in zip(axes.flat, charts, strict=False):
        _draw(axis, chart)
        axis.set_title(_literal(chart.title), fontsize="medium")
    for axis in axes.flat[len(charts) :]:
        axis.set_visible(False)
    _legend(figure, arms, 5)
    return figure


def _alone(chart: Chart, arms: Sequence[str]) -> Figure:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    _draw(figure.subplots(), chart)
    _legend(figure, arms, 3)
    return figure


def _draw(axis: Axes, chart: Chart) -> None:
    for series in chart.series:
        _series(axis, series, chart)
    axis.set_xlabel(_literal(chart.x.title))
    axis.set_ylabel(_literal(chart.y.title))
    for which, own in (("x", chart.x), ("y", chart.y)):
        if own.log:
            axis.set(**{f"{which}scale": "log"})
        if own.range:
            axis.set(**{f"{which}lim": own.range})
        if own.labels:
            labels = [_literal(label).replace(" ", "\n") for _, label in own.labels]
            getattr(axis, f"set_{which}ticks")([value for value, _ in own.labels], labels)
            axis.minorticks_off()
    if not chart.x.labels and chart.x.title == "tokens":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.spines[["top", "right"]].set_visible(False)
    if controls := [series for series in chart.series if series.kind == "ticks"]:
        strokes = [Line2D([], [], color=colour_of(one.arm), linestyle=_tick_style(one.dash)) for one in controls]
        names = [_literal(one.name) for one in controls]
        axis.legend(strokes, names, loc="upper left", frameon=False, fontsize="x-small")


def _series(axis: Axes, series: Series, chart: Chart) -> None:
    colour, turn = colour_of(series.arm), series.dash if series.arm is None else series.arm // len(COLOURS)
    x, y, low, high, x_low, x_high = (
        None if values is None else np.array([np.nan if one is None else one for one in values], dtype=float)
        for values in (series.x, series.y, series.low, series.high, series.x_low, series.x_high)
    )
    assert x is not None and y is not None
    style, marker = _DASHES[turn % 3], _MARKERS[turn % 3]
    match series.kind:
        case "line":
            # A line through one point would not be seen.
            alone = marker if np.isfinite(y).sum() == 1 else None
            axis.plot(x, y, color=colour, linestyle=style, linewidth=1.5, marker=alone, markersize=4)
            if low is not None and high is not None:
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        case "points":
            axis.errorbar(
                x, y, yerr=_ends(y, low, high), xerr=_ends(x, x_low, x_high), fmt=marker, color=colour, markersize=5,
                elinewidth=1,
            )  # fmt: skip
        case "faint points":
            axis.plot(x, y, marker, color=colour, markersize=3, alpha=0.4, markeredgewidth=0)
        case "bars":
            axis.bar(
                x, y - chart.base, chart.bar_width, chart.base, color=colour, yerr=_ends(y, low, high), ecolor="#444444",
                hatch=("", "//", "..")[turn % 3] or None, error_kw={"elinewidth": 0.8},
            )  # fmt: skip
        case "front":
            axis.step(x, y, where="post", color=colour, linestyle=":", linewidth=1.2)
        case "rule":
            axis.plot(x, y, color=colour, linewidth=1.2)
        case "ticks":
            axis.hlines(y, x - 0.42, x + 0.42, color=colour, linestyle=_tick_style(turn), linewidth=1.4)


def _tick_style(turn: int) -> Literal["-", "--", ":"]:
    """Solid, then dotted: dashes would not show in so short a stroke."""
    return _DASHES[2 * turn % 3]


def _ends(values: np.ndarray, low: np.ndarray | None, high: np.ndarray | None) -> np.ndarray | None:
    if low is None or high is None or not np.isfinite(low).any():
        return None
    # An interval holds its value; rounding may put it outside by a hair, which matplotlib refuses.
    return np.clip(np.array([values - low, high - values]), 0, None)


def _legend(figure: Figure, arms: Sequence[str], columns: int) -> None:
    turns = [index // len(COLOURS) % 3 for index in range(len(arms))]
    handles = [
        Line2D([], [], color=colour_of(index), linestyle=_DASHES[turn], marker=_MARKERS[turn], markersize=4)
        for index, turn in enumerate(turns)
    ]
    # The names are set afterwards: matplotlib leaves labels out that begin with "_".
    legend = figure.legend(
        handles,
        ["run"] * len(handles),
        loc="outside upper center",
        ncols=min(len(handles), columns),
        frameon=False,
        fontsize="small",
    )
    for text, name in zip(legend.get_texts(), arms, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _maps(maps: Sequence[Maps]) -> Figure:
    columns = max(len(one.panels) for one in maps)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.7 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for row, one in zip(axes, maps, strict=True):
        for axis in row[len(one.panels) :]:
            axis.set_visible(False)
        for axis, (title, table) in zip(row, one.panels.items(), strict=False):
            extent = (one.positions[0], one.positions[-1] + 1, len(table), 0)
            axis.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=255, interpolation="nearest", extent=extent)
            axis.set_title(title, fontsize="small")
            axis.set_yticks([])
            axis.tick_params(labelsize="x-small")
        row[0].set_ylabel(_literal(one.arm), fontsize="small")
    return figure


def _literal(text: str) -> str:
    """Text with no formula in it."""
    return text.replace("$", r"\$")
