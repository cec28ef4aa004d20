"""Results as pictures: ``python -m benchmarks.figures`` draws ``docs/images/speed_*.png`` from the JSON files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cyclopts import App
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter

from benchmarks.growth_figure import growth
from benchmarks.table import RESULTS
from benchmarks.training_tables import OURS, PLAIN, Result, floor_of, groups, kind_of, rates, seconds_of
from scansion.files import atomic_file
from scansion.palette import COLOURS, REFERENCE
from scansion.progress import say
from scansion.records import read_json

WHOSE = {"scansion": COLOURS[0], "sae-lens": COLOURS[4], "dictionary-learning": COLOURS[2], "eai-sparsify": COLOURS[3]}
KINDS = {"relu": "ReLU + L1", "topk": "TopK", "batch_topk": "BatchTopK"}
BAR = 0.27  # inches
PARTS = (*COLOURS, REFERENCE, "#c7c7c7", "#4d4d4d", "#e3d5b8", "#a8c5a0")
app = App(help_format="plaintext")


def training(result: Result) -> Figure:
    """Tokens per second of every subject, one panel per architecture."""
    seconds = {name: own for group in groups(result).values() for name, own in seconds_of(group, "wall").items()}
    kinds = [kind for kind in KINDS if f"{OURS}{kind}" in seconds]
    shown = {kind: _of(kind, seconds) for kind in kinds}
    heights = [len(names) + 1.2 for names in shown.values()]
    figure = Figure(figsize=(9, BAR * sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    tokens = result["settings"]["batch_tokens"]
    for axis, (kind, names) in zip(axes, shown.items(), strict=True):
        speeds = [tokens / seconds[name] for name in names]
        own = tokens / seconds[f"{OURS}{kind}"]
        _bars(axis, [name.replace(f" {kind}", "") for name in names], speeds, [_colour(name) for name in names])
        for row, speed in enumerate(speeds):
            axis.annotate(f"{speed:,.0f}   {_times(speed / own)}", (speed, row), (4, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
        axis.set_title(KINDS[kind], loc="left", fontsize=10)
    axes[-1].set_xlabel("tokens a second (and times ours without a mask)")
    axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[-1].set_xlim(0, 1.22 * max(tokens / seconds[name] for names in shown.values() for name in names))
    figure.suptitle(_title(result), fontsize=11)
    return figure


def floors(result: Result) -> Figure:
    """Each of our steps compared with its floor: the products, and Adam's traffic."""
    rows: list[tuple[str, float, float, float]] = []
    for group in groups(result).values():
        seconds = seconds_of(group, "wall")
        rate = rates(result, seconds)
        for name in (own for own in seconds if own.startswith(OURS)):
            products, adam = floor_of(result["work"][name], rate)
            kind = kind_of(name)
            label = name.removeprefix(OURS).replace(kind, KINDS[kind])
            rows.append((label, 1e3 * products, 1e3 * adam, 1e3 * seconds[name]))
    rows.sort(key=lambda row: (row[0].split(",")[0], row[3]))
    figure = Figure(figsize=(9, BAR * len(rows) + 1.6), layout="constrained")
    figure.suptitle(_title(result), fontsize=11)
    axis = figure.subplots()
    _bars(axis, [row[0] for row in rows], [row[3] for row in rows], ["#d9d9d9"] * len(rows))
    places = range(len(rows))
    axis.barh(places, [row[1] for row in rows], color=COLOURS[0], height=0.72)
    axis.barh(places, [row[2] for row in rows], left=[row[1] for row in rows], color=COLOURS[1], height=0.72)
    for place, (_, products, adam, found) in enumerate(rows):
        end = max(found, products + adam)
        axis.annotate(f"{found:.0f} ms, {found / (products + adam):.1f}x its floor", (end, place), (4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set(xlabel="milliseconds a step", xlim=(0, 1.3 * max(row[3] for row in rows)))
    handles = [
        Patch(color=COLOURS[0], label="the least operations, at the speed of a plain product"),
        Patch(color=COLOURS[1], label="Adam's 28 bytes a parameter, at the speed of a copy"),
        Patch(color="#d9d9d9", label="all the rest"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def study(result: Result) -> Figure:
    """Ten SAEs from text: reading and training, of ours and of each peer in ten runs and in one pass."""
    n = result["settings"]["n_runs"]
    rows: list[tuple[str, float, float, bool]] = []
    for name, found in result.items():
        if not isinstance(found, dict) or "seconds" not in found:
            continue
        once = found["seconds"]
        if "load_and_lm" in once:
            rows.append((name, once["load_and_lm"], once["train"], True))
        else:
            reading = once["load"] + once["lm"]
            rows.append((f"{name}, ten runs (10 x one)", n * reading, n * once["train"], False))
            rows.append((f"{name}, in one pass (computed)", reading, n * once["train"], False))
    rows.sort(key=lambda row: row[1] + row[2])
    figure = Figure(figsize=(9, BAR * len(rows) + 1.3), layout="constrained")
    axis = figure.subplots()
    ends = [row[1] + row[2] for row in rows]
    _bars(axis, [row[0] for row in rows], ends, [COLOURS[0]] * len(rows))
    axis.barh(range(len(rows)), [row[1] for row in rows], color=COLOURS[1], height=0.72)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row[3] else "normal")
    for place, end in enumerate(ends):
        axis.annotate(f"{end:,.0f} s", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set(xlabel=f"seconds from text to ten SAEs, {result['settings']['tokens']:,} tokens each")
    axis.set_xlim(0, 1.12 * max(ends))
    handles = [Patch(color=COLOURS[1], label="language model"), Patch(color=COLOURS[0], label="training")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def profile(result: Result) -> Figure:
    """The groups of operations of a step, a bar a mask."""
    found = {name: part for name, part in result.items() if isinstance(part, dict) and "groups" in part}
    names = [f"{name} bands" if name.isdigit() else name.replace("none", "no mask") for name in found]
    order: dict[str, float] = {}
    for part in found.values():
        for group, seconds in part["groups"].items():
            order[group] = max(order.get(group, 0.0), seconds)
    figure = Figure(figsize=(9, 0.6 * len(found) + 2), layout="constrained")
    axis = figure.subplots()
    _bars(axis, names, [0.0] * len(found), [REFERENCE] * len(found))
    left = [0.0] * len(found)
    for colour, group in zip(PARTS, sorted(order, key=lambda name: -order[name]), strict=False):
        widths = [1e3 * part["groups"].get(group, 0.0) for part in found.values()]
        axis.barh(range(len(found)), widths, left=left, color=colour, height=0.6, label=group, edgecolor="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(xlabel="milliseconds a step", xlim=(0, 1.02 * max(left)))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _title(result: Result) -> str:
    sizes = result["settings"]
    return f"A step of training: d_in {sizes['d_in']}, d_sae {sizes['d_sae']}, k {sizes['k']}, {sizes['batch_tokens']} tokens"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def _of(kind: str, seconds: dict[str, float]) -> list[str]:
    return sorted((name for name in seconds if name not in PLAIN and kind_of(name) == kind), key=seconds.__getitem__)


def _colour(name: str) -> str:
    return REFERENCE if "dense form" in name else next(own for who, own in WHOSE.items() if name.startswith(who))


def _bars(axis: Axes, labels: Sequence[str], widths: Sequence[float], colours: Sequence[str]) -> None:
    axis.barh(range(len(labels)), widths, color=colours, height=0.72)
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


FIGURES: dict[str, tuple[str, Callable[[Result], Figure]]] = {
    "training": ("training.json", training),
    "training_wide": ("training_wide.json", training),
    "floors": ("training.json", floors),
    "study": ("study.json", study),
    "growth": ("growth.json", growth),
    "profile": ("profile.json", profile),
}
"""Each picture's result file and how it is drawn."""


@app.default
def draw(*, results: Path = RESULTS, images: Path = Path("docs/images")) -> None:
    """Draw what there are results of.

    Args:
        results: the folder of the JSON files.
        images: where the pictures go.
    """
    for name, (file, make) in FIGURES.items():
        if not (results / file).exists():
            say(f"{name}: no {file}")
            continue
        with atomic_file(images / f"speed_{name}.png") as temporary:
            make(read_json(results / file)).savefig(temporary, format="png", dpi=110)
        say(f"{name}: {images / f'speed_{name}.png'}")


if __name__ == "__main__":
    app()
