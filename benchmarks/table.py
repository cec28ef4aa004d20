"""Results as Markdown: ``python -m benchmarks.table`` prints all tables, ``--into docs/speed.md`` writes them there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cyclopts import App

from benchmarks import gpu_tables
from benchmarks.quality_tables import equal_tokens, on_the_fly, quality, recipe
from benchmarks.training_tables import (
    PLAIN,
    Result,
    Rows,
    aims,
    conditions,
    floors,
    groups,
    seconds_of,
    shown,
    speeds,
    table,
)
from benchmarks.ways import ways
from scansion.errors import ConfigError
from scansion.files import atomic_file
from scansion.records import read_json

RESULTS = Path("benchmarks/results")
BLOCK = "<!-- measured: {} -->\n{}\n<!-- end -->"
app = App(help_format="plaintext")


def harvest(result: Result, clock: str) -> str:
    """Tokens per second of each way to activations."""
    seconds = seconds_of(result["harvest"], clock)
    tokens, own = result["settings"]["tokens"], "scansion, language model to disk"
    rows: Rows = [("", "tokens/s", "time, of ours")]
    for name in sorted(seconds, key=seconds.__getitem__):
        if name not in PLAIN:
            rows.append((name, f"{tokens / seconds[name]:,.0f}", f"{seconds[name] / seconds[own]:.2f}x"))
    work = result["work"]
    share = (work[own]["flop"] / seconds[own]) / (work["square product"]["flop"] / seconds["square product"])
    said = [f"Up to the layer, ours does {share:.0%} of the square product's operations per second."]
    said += not_measured(result)
    return "\n\n".join([conditions(result, clock), table(*rows), " ".join(said)])


def study(result: Result, clock: str) -> str:
    """Ten SAEs of ours, and of each peer: one run measured, ten computed from it."""
    n = result["settings"]["n_runs"]
    rows: Rows = [
        ("", "language model, s", "training, s", "one run, s", f"{n} runs, s", f"{n} in one pass, s", "of ours")
    ]
    best = result.get("scansion, ten seeds, no mask", {}).get("seconds", {}).get("ten_runs")
    for name, found in result.items():
        once = found.get("seconds") if isinstance(found, dict) else None
        if once is None:
            continue
        if name.startswith("scansion"):
            took = (once["load_and_lm"], once["train"], None, None, once["ten_runs"])
        else:
            computed = found["computed"]["ten_runs"], found["computed"]["ten_in_one_pass"]
            took = (once["load"] + once["lm"], once["train"], once["one_run"], *computed)
        ratios = " and ".join(f"{own / best:.1f}x" for own in took[3:] if own is not None and best)
        rows.append((name, *("" if own is None else f"{own:.0f}" for own in took), ratios))
    said = (
        f"Each was measured once, by the clock. For a peer one run was measured; {n} runs are {n} times that. Its time in one "
        f"pass, if it can train several SAEs on one reading, is its reading plus {n} times its training. Both are computed."
    )
    return "\n\n".join([conditions(result, clock), table(*rows), " ".join([said, *not_measured(result)])])


def growth(result: Result, clock: str) -> str:
    """Each axis with its points, and the exponents they grow by. By the clock, whatever ``clock`` says."""
    parts = [conditions(result, "wall")]
    for name, axis in groups(result).items():
        rows: Rows = [(name, *map(str, axis["values"]), "exponent", "last step")]
        for form, found in axis["seconds"].items():
            rows.append(
                (f"{form}, ms", *(f"{1e3 * own:.1f}" for own in found), *_exponents(axis["time_exponents"][form]))
            )
        if memory := axis.get("memory"):
            cells = [f"{own / 1e6:.0f}" for own in memory["bytes"]]
            rows.append((f"{memory['form']}, peak MB", *cells, *_exponents(memory["exponent"])))
        parts += [table(*rows), f"Expected exponent of the time: {axis['expected']}."]
    return "\n\n".join(parts)


def _exponents(found: dict[str, float]) -> tuple[str, str]:
    return shown(found["fitted"]), shown(found["last"])


def profile(result: Result, clock: str) -> str:
    """Milliseconds and share of each group of operations, for each mask."""
    found = {name: part for name, part in result.items() if isinstance(part, dict) and "groups" in part}
    names = {"none": "no mask", **{name: f"{name} bands" for name in found if name.isdigit()}}
    rows: Rows = [("", *(f"{names.get(name, name)}, ms" for name in found), *("share" for _ in found))]
    order: dict[str, float] = {}
    for part in found.values():
        for group, seconds in part["groups"].items():
            order[group] = max(order.get(group, 0.0), seconds)
    for group in sorted(order, key=lambda name: -order[name]):
        own = [part["groups"].get(group, 0.0) for part in found.values()]
        totals = [part["seconds"] for part in found.values()]
        cells = [f"{1e3 * s:.1f}" for s in own] + [f"{s / t:.0%}" for s, t in zip(own, totals, strict=True)]
        rows.append((group, *cells))
    rows.append(("step", *(f"{1e3 * part['seconds']:.1f}" for part in found.values()), *("" for _ in found)))
    return "\n\n".join([conditions(result, "wall"), table(*rows)])


def not_measured(result: Result) -> list[str]:
    """A sentence for each peer that took no part."""
    return [f"Not measured: {name}, {why}." for name, why in result.get("not_measured", {}).items()]


TABLES: dict[str, tuple[str, Callable[[Result, str], str]]] = {
    "training": ("training.json", speeds),
    "training of a wide SAE": ("training_wide.json", speeds),
    "training in large batches": ("training_large.json", speeds),
    "ways": ("ways.json", ways),
    "floors": ("training.json", floors),
    "floors of a wide SAE": ("training_wide.json", floors),
    "aims": ("training.json", aims),
    "aims in large batches": ("training_large.json", aims),
    "harvest": ("harvest.json", harvest),
    "study": ("study.json", study),
    "growth": ("growth.json", growth),
    "profile": ("profile.json", profile),
    "quality": ("quality.json", quality),
    "recipe": ("recipe.json", recipe),
    "doubling": ("doubling.json", recipe),
    "on_the_fly": ("on_the_fly.json", on_the_fly),
    "equal_tokens": ("equal_tokens.json", equal_tokens),
    "GPU": ("gpu.json", lambda result, _: gpu_tables.tables(result)),
}
"""Each table's result file and how it is made of it."""
FIGURES = {
    "training": "training",
    "training of a wide SAE": "training_wide",
    "floors": "floors",
    "study": "study",
    "growth": "growth",
    "profile": "profile",
}
"""The picture under a table, where it has been drawn."""


def block(name: str, results: Path, images: Path, clock: str) -> str:
    """One table, with its picture if there is one; says so where nothing has been measured."""
    file, make = TABLES[name]
    if not (results / file).exists():
        return f"Not measured yet: `make bench{'-gpu' if name == 'GPU' else ''}`."
    text = make(read_json(results / file), clock)
    picture = images / f"speed_{FIGURES.get(name, '')}.png"
    return f"{text}\n\n![{name}](images/{picture.name})" if picture.exists() else text


@app.default
def write(*, results: Path = RESULTS, into: Path | None = None, clock: Literal["wall", "cpu"] = "wall") -> None:
    """Print every table, or put each in its place in a page.

    Args:
        results: the folder of the JSON files.
        into: a page with places for tables, ``<!-- measured: NAME -->`` to ``<!-- end -->``; pictures are looked for in
            ``images`` beside it.
        clock: of the times.
    """
    images = (into.parent if into else Path("docs")) / "images"
    made = {name: BLOCK.format(name, block(name, results, images, clock)) for name in TABLES}
    if into is None:
        sys.stdout.write("\n\n".join(made.values()) + "\n")
        return
    text = into.read_text(encoding="utf-8")
    for name, new in made.items():
        place = rf"<!-- measured: {re.escape(name)} -->\n(?:(?!<!--).)*<!-- end -->"
        text, found = re.subn(place, lambda _, new=new: new, text, flags=re.DOTALL)
        if found != 1:
            raise ConfigError(f"{into} has {found} places for {name!r}, and should have one")
    with atomic_file(into) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
