"""One figure of a synthetic study: a row a variant, a panel a figure, a colour a world, with intervals and chance levels."""

from __future__ import annotations

from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scansion.palette import COLOURS, REFERENCE
from scansion.study.synthetic.comparison import METRICS, StudySummary

_PANELS = ("fve", "recovered_bound", "recovered_unbound", "firing_match", "mask_match", "duplicates")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_ROW_INCHES = 0.16


def overview(summary: StudySummary) -> Figure:
    """The figures of all variants in all worlds, on axes that begin at 0 and end at 1."""
    n_variants, n_worlds = len(summary.variants), len(summary.worlds)
    height = 1.6 + 2 * (0.7 + max(1.0, _ROW_INCHES * n_variants * (n_worlds + 1)))
    figure = Figure(figsize=(12, height), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    for axis, key in zip(axes.flat, _PANELS, strict=True):
        _panel(axis, summary, key)
    names = list(summary.variants)
    axes[0, 0].set_yticks(range(n_variants), names)
    axes[0, 0].set_ylim(n_variants - 0.5, -0.5)
    handles = [
        Line2D(
            [], [], color=COLOURS[i % len(COLOURS)], marker=_MARKERS[i % len(_MARKERS)], label=world.name, linestyle=""
        )
        for i, world in enumerate(summary.worlds)
    ]
    handles.append(Line2D([], [], color=REFERENCE, marker="|", linestyle="", label="chance", markersize=9))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    many = len(summary.seeds) > 1
    figure.supxlabel(
        f"mean over {len(summary.seeds)} seeds with 95% t-interval" if many else "one seed, no interval", fontsize=9
    )
    return figure


def _panel(axis: Axes, summary: StudySummary, key: str) -> None:
    metric = METRICS[key]
    step = 0.8 / len(summary.worlds)
    for index, world in enumerate(summary.worlds):
        colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
        for row, variant in enumerate(world.variants):
            y = row + (index - (len(summary.worlds) - 1) / 2) * step
            estimate = variant.estimates[key]
            if estimate.value is None:
                continue
            axis.plot(estimate.value, y, marker=marker, color=colour, markersize=4)
            if estimate.low is not None and estimate.high is not None:
                axis.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.2)
            chance = variant.estimates[metric.chance].value if metric.chance else None
            if chance is not None:
                axis.plot(chance, y, marker="|", color=REFERENCE, markersize=7)
    for row in range(1, len(summary.variants)):
        axis.axhline(row - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axis.set(title=metric.title, xlim=(-0.02, 1.02))
    axis.set_xlabel(fill(metric.meaning, 46), fontsize=7.5, color="0.3")
    axis.spines[["top", "right"]].set_visible(False)
