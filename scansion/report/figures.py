"""The figures: how training went, how reconstruction depends on position, how often features fire, what probes find."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from scansion.activations import ActivationStore
from scansion.evals.bundle import Evaluations

# Okabe and Ito's palette, which colour-blind readers can tell apart; grey is kept for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE = "#7f7f7f"


def overview(runs: Sequence[Evaluations], folders: Mapping[str, Path], held_out: ActivationStore) -> Figure:
    """All panels of a study in one figure.

    Args:
        runs: comparable, sound runs.
        folders: run name -> its folder, for the metrics of training.
        held_out: the store the runs were evaluated on, for the norms.
    """
    figure = Figure(figsize=(12, 10.5), layout="constrained")
    axes = figure.subplots(3, 2)
    colours = {run.name: COLOURS[index % len(COLOURS)] for index, run in enumerate(runs)}
    _training(axes[0, 0], axes[0, 1], runs, folders, colours)
    _by_position(axes[1, 0], runs, colours)
    _norms(axes[1, 1], held_out)
    _density(axes[2, 0], runs, colours)
    _probing(axes[2, 1], runs, colours)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, colours)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as an image of about 1300 pixels' width."""
    figure.savefig(path, format="png", dpi=110)


def svg_of(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same bytes for the same figure; text stays text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scansion"}):
        # Without its metadata block the picture is the same on every day and names no address.
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=colour) for colour in colours.values()]
    # The names are set afterwards: matplotlib leaves labels out that begin with "_", and reads "$" as mathematics.
    legend = figure.legend(
        handles, ["run"] * len(handles), loc="outside upper center", ncols=min(len(handles), 5), frameon=False
    )
    for text, name in zip(legend.get_texts(), colours, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _training(
    fve: Axes, l0: Axes, runs: Sequence[Evaluations], folders: Mapping[str, Path], colours: Mapping[str, str]
) -> None:
    for run in runs:
        path = folders[run.name] / "metrics.jsonl"
        if path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            tokens = [line["tokens"] for line in lines]
            fve.plot(tokens, [line["fve"] for line in lines], color=colours[run.name])
            l0.plot(tokens, [line["l0"] for line in lines], color=colours[run.name])
    fve.set(title="Reconstruction during training", xlabel="tokens", ylabel="FVE of the batch", ylim=(0, 1))
    l0.set(title="Sparsity during training", xlabel="tokens", ylabel="L0 (log scale)", yscale="log")
    _plain_log_ticks(l0)
    for axis in (fve, l0):
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _plain_log_ticks(axis: Axes) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten, written out."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _by_position(axis: Axes, runs: Sequence[Evaluations], colours: Mapping[str, str]) -> None:
    for run in runs:
        values = [np.nan if value is None else value for value in run.core.by_position["fve"]]
        axis.plot(run.core.positions, values, color=colours[run.name])
    axis.set(title="Held-out reconstruction by position", xlabel="position in context", ylabel="FVE at the position")


def _norms(axis: Axes, held_out: ActivationStore) -> None:
    norms = held_out.mean_norm.numpy()
    axis.plot(norms, color=REFERENCE)
    axis.set(
        title=f"Activation norm by position ({held_out.identity.hook_point})",
        xlabel="position in context",
        ylabel="mean L2 norm (log scale)",
        yscale="log",
    )
    _plain_log_ticks(axis)
    axis.annotate(
        f"position 0: {norms[0] / np.nanmean(norms[1:]):.1f} times\nthe mean of the rest",
        (0, norms[0]),
        (0.12, 0.8),
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "color": REFERENCE},
    )


def _density(axis: Axes, runs: Sequence[Evaluations], colours: Mapping[str, str]) -> None:
    for run in runs:
        density = run.core.density
        axis.stairs(density.counts, density.edges, color=colours[run.name])
    axis.set(title="How often features fire", xlabel="log10 of firing rate (at allowed positions)", ylabel="features")


def _probing(axis: Axes, runs: Sequence[Evaluations], colours: Mapping[str, str]) -> None:
    axis.set(title="Sparse probing", ylabel="accuracy, mean over data sets")
    probed = [(run.name, run.sparse_probing) for run in runs if run.sparse_probing]
    if not probed:
        axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes, color=REFERENCE)
        return
    for name, probing in probed:
        ks = sorted(probing.sae_top_k)
        estimates = [probing.sae_top_k[k] for k in ks]
        values = np.array([[e.value, e.low, e.high] for e in estimates], dtype=float).T
        axis.plot(ks, values[0], color=colours[name], marker="o", markersize=3)
        axis.fill_between(ks, values[1], values[2], color=colours[name], alpha=0.15, linewidth=0)
    lm = probed[0][1]
    ks = sorted(lm.lm_top_k)
    top_k = np.array([lm.lm_top_k[k].value for k in ks], dtype=float)
    axis.plot(ks, top_k, color=REFERENCE, linestyle="--", label="LM, k dimensions")
    if lm.lm_test_accuracy.value is not None:
        axis.axhline(lm.lm_test_accuracy.value, color=REFERENCE, linestyle=":", label="LM, all dimensions")
    axis.axhline(0.5, color=REFERENCE, linewidth=0.8, label="chance")
    axis.legend(loc="best", frameon=False, fontsize="small")
    axis.set_xscale("log")
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.set_xlabel("features in the probe (k)")
