"""Charts in the form plotly.js reads; colours of text and lines are left to the page's theme."""

from __future__ import annotations

import math
from typing import Any

from scansion.palette import COLOURS, REFERENCE
from scansion.report.charts import Axis, Chart, Series

_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square", "diamond")


def figure_of(chart: Chart) -> dict[str, Any]:
    """``{data, layout}``; every trace says in ``meta.arm`` whose it is."""
    traces = [trace for series in chart.series for trace in _traces(series, chart)]
    layout: dict[str, Any] = {"height": 320, "xaxis": _axis(chart.x), "yaxis": _axis(chart.y), "barmode": "overlay"}
    return {"data": traces, "layout": layout}


def colour_of(arm: int | None) -> str:
    """An arm's colour; grey for a control or reference."""
    return REFERENCE if arm is None else COLOURS[arm % len(COLOURS)]


def plain(text: str) -> str:
    """Text that plotly.js, which reads a few HTML tags in labels, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _traces(series: Series, chart: Chart) -> list[dict[str, Any]]:
    colour, turn = colour_of(series.arm), series.dash if series.arm is None else series.arm // len(COLOURS)
    common: dict[str, Any] = {
        "type": "scatter",
        "x": list(series.x),
        "y": list(series.y),
        "meta": {"arm": series.arm, "name": plain(series.name)},
        "hovertemplate": f"%{{meta.name}}<br>{_hover(chart)}<extra></extra>",
    }
    line = {"color": colour, "width": 2, "dash": _DASHES[turn % 3]}
    marker = {"color": colour, "size": 9, "symbol": _SYMBOLS[turn % 3]}
    match series.kind:
        case "line":
            seen = sum(value is not None for value in series.y)
            return [
                *_band(series, colour),
                # A line through one point would not be seen.
                {**common, "mode": "lines" if seen > 1 else "markers", "line": line, "marker": {**marker, "size": 6}},
            ]
        case "points":
            bars = {
                f"error_{axis}": _errors(values, low, high, colour)
                for axis, values, low, high in (
                    ("x", series.x, series.x_low, series.x_high),
                    ("y", series.y, series.low, series.high),
                )
                if low is not None and any(one is not None for one in low)
            }
            return [{**common, "mode": "markers", "marker": marker, **bars}]
        case "faint points":
            return [{**common, "mode": "markers", "marker": {**marker, "size": 5, "opacity": 0.4}}]
        case "bars":
            heights = [None if value is None else value - chart.base for value in series.y]
            error = {"error_y": _errors(series.y, series.low, series.high, REFERENCE)} if series.low else {}
            return [
                {
                    **common, "type": "bar", "y": heights, "base": chart.base, "width": chart.bar_width,
                    "marker": {"color": colour, "pattern": {"shape": ("", "/", ".")[turn % 3]}},
                    "customdata": list(series.y), "hovertemplate": "%{meta.name}<br>%{customdata:.3f}<extra></extra>",
                    **error,
                }
            ]  # fmt: skip
        case "front":
            return [
                {
                    **common, "mode": "lines", "hoverinfo": "skip", "hovertemplate": None,
                    "line": {"color": colour, "width": 1.5, "dash": "dot", "shape": "hv"},
                }
            ]  # fmt: skip
        case "rule":
            return [{**common, "mode": "lines", "line": {**line, "width": 1.5}}]
        case "ticks":
            half = 0.42
            return [
                {
                    **common, "mode": "lines", "line": {"color": colour, "width": 2, "dash": _DASHES[2 * turn % 3]},
                    "x": [end for x in series.x if x is not None for end in (x - half, x + half, None)],
                    "y": [end for y in series.y for end in (y, y, None)],
                    "hovertemplate": "%{meta.name}: %{y:.3f}<extra></extra>",
                }
            ]  # fmt: skip


def _band(series: Series, colour: str) -> list[dict[str, Any]]:
    if series.low is None or series.high is None:
        return []
    there = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    if not there:
        return []
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    xs, lows, highs = (list(part) for part in zip(*there, strict=True))
    return [
        {
            "type": "scatter", "mode": "lines", "x": xs + xs[::-1], "y": highs + lows[::-1], "fill": "toself",
            "fillcolor": f"rgba({red},{green},{blue},0.16)", "line": {"width": 0}, "hoverinfo": "skip",
            "meta": {"arm": series.arm},
        }
    ]  # fmt: skip


def _errors(values: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    triples = list(zip(values, low, high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if high is None or value is None else high - value for value, _, high in triples],
        "arrayminus": [None if low is None or value is None else value - low for value, low, _ in triples],
        "color": colour,
        "thickness": 1.3,
        "width": 0,
    }


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {"title": {"text": plain(axis.title)}, "zeroline": False}
    if axis.log:
        found["type"] = "log"
    if axis.range:
        found["range"] = [math.log10(end) for end in axis.range] if axis.log else list(axis.range)
    if axis.labels:
        found |= {
            "tickvals": [value for value, _ in axis.labels],
            "ticktext": [plain(label).replace(" ", "<br>") for _, label in axis.labels],
            "showgrid": axis.log,
        }
    return found


def _hover(chart: Chart) -> str:
    x = "" if chart.x.labels else f"{plain(chart.x.title)}: %{{x:.4~g}}<br>"
    return f"{x}{plain(chart.y.title)}: %{{y:.4~g}}"
