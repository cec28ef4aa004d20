"""Growth: how the time of a step and its memory grow with features, positions, bands, SAEs and tokens."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
from cyclopts import App, Parameter
from torch import Tensor

from benchmarks.limits import SQUARE
from benchmarks.peers import Step
from benchmarks.rounds import Action, Record, Summaries
from benchmarks.subjects import Subject, batch
from scansion.progress import say

STEPS_FOR_MEMORY = 3  # until Adam has its moments and every buffer has been made
app = App(help_format="plaintext")


@dataclass(frozen=True)
class Point:
    """One size that a step is taken at; only ``n_saes`` of them share a batch."""

    d_in: int = 576
    d_sae: int = 4608
    k: int = 32
    n_positions: int = 128
    mask: str = "none"
    dense: bool = False
    n_saes: int = 1
    batch_tokens: int = 2048

    def steps(self) -> list[Step]:
        """A step of each SAE."""
        first = Subject("topk", self.d_in, self.d_sae, self.k, self.mask, self.dense, self.n_positions)
        return [replace(first, seed=seed).step() for seed in range(self.n_saes)]

    def action(self, x: Tensor | None = None) -> Action:
        """All SAEs take a step on the same batch: ``x``, or one that is made here."""
        x = batch(self.batch_tokens, self.d_in, 0) if x is None else x
        steps = self.steps()

        def act(_: int) -> None:
            for step in steps:
                step(x)

        return act


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        name: of the field of :class:`Point` that grows; ``bands`` is ``mask``.
        values: ascending.
        forms: how the step is executed, by name; the first is also measured for its memory.
        expected: the exponent that the work alone would give, and why.
    """

    name: str
    values: tuple[int, ...]
    forms: dict[str, Point]
    expected: str

    def point(self, form: str, value: int) -> Point:
        """``form`` at ``value``."""
        if self.name == "bands":
            return replace(self.forms[form], mask=str(value))
        return replace(self.forms[form], **{self.name: value})

    def curves(self, times: Summaries) -> dict[str, Any]:
        """Seconds of each form at each value, and the exponents they grow by."""
        seconds = {form: [times[f"{form} at {value}"]["wall_seconds"] for value in self.values] for form in self.forms}
        return {
            "values": self.values,
            "expected": self.expected,
            "seconds": seconds,
            "time_exponents": {form: exponent(self.values, own) for form, own in seconds.items()},
        }


def axes(base: Point) -> tuple[Axis, ...]:
    """What grows around ``base``, which should be a size from which all values are reached in doublings."""
    plain, bands, dense = base, replace(base, mask="8"), replace(base, dense=True)
    both = {"no mask": plain, "8 bands": bands}
    return (
        Axis(
            "d_sae",
            tuple(base.d_in * factor for factor in (2, 4, 8, 16)),
            {**both, "dense form": dense},
            "1 for the encoder product, selection and Adam; 0 for what k decides; in all at most 1",
        ),
        Axis("n_positions", (64, 128, 256, 512), both, "0: positions share the tokens of a batch"),
        Axis(
            "bands",
            (1, 2, 4, 8, 16, 32),
            {"topk": plain},
            "-1 for the encoder product and selection; 0 for what k decides and for Adam",
        ),
        Axis("n_saes", (1, 2, 5, 10), both, "1: only the reading of the batch is shared"),
        Axis(
            "batch_tokens",
            tuple(base.batch_tokens * factor // 4 for factor in (1, 2, 4, 8, 16)),
            both,
            "1 for all but Adam and the passes over the parameters, which are 0",
        ),
    )


AXES = tuple(axis.name for axis in axes(Point()))


@app.default
def measure(
    *,
    out: Path,
    only: tuple[str, ...] = AXES,
    d_in: int = 576,
    d_sae: int = 4608,
    k: int = 32,
    batch_tokens: int = 2048,
    rounds: int = 7,
    threads: int | None = None,
    memory: Annotated[bool, Parameter(negative="--no-memory")] = True,
    square: int = SQUARE,
) -> None:
    """Let all points of an axis take a step in turn, axis by axis; then a process each for the memory of the first form.

    Args:
        out: the JSON file.
        only: axes, some of d_sae, n_positions, bands, n_saes, batch_tokens.
        d_in, d_sae, k, batch_tokens: sizes that everything grows around; TopK.
        rounds: steps of each.
        threads: of torch.
        memory: whether memory is measured.
        square: side of the plain matrix product measured with them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    base = Point(d_in=d_in, d_sae=d_sae, k=k, batch_tokens=batch_tokens)
    record = Record(out, "growth", {"base": asdict(base), "memory_after_steps": STEPS_FOR_MEMORY})
    chosen = [axis for axis in axes(base) if axis.name in only]
    a, b = torch.randn(square, square), torch.randn(square, square)
    product = torch.empty(square, square)
    for axis in chosen:
        turns: dict[str, Action] = {"square product": lambda _: torch.mm(a, b, out=product)}
        turns |= {
            f"{form} at {value}": axis.point(form, value).action() for form in axis.forms for value in axis.values
        }
        record.measure(axis.name, turns, rounds, axis.curves)
        del turns
    for axis in chosen if memory else ():
        form = next(iter(axis.forms))
        used = [peak_of(axis.point(form, value)) for value in axis.values]
        found = {"form": form, "bytes": used, "exponent": exponent(axis.values, used)}
        record.put(**{axis.name: record.content[axis.name] | {"memory": found}})
        say(f"{axis.name}: memory, {out}")


def exponent(values: Sequence[float], found: Sequence[float]) -> dict[str, float]:
    """How ``found`` grows: by the power of ``values`` that fits best, and that of the last step alone.

    Returns:
        ``fitted``, by least squares on logarithms; ``last``, between the two largest values.
    """
    x, y = np.log(values), np.log(found)
    return {
        "fitted": float(np.polyfit(x, y, 1)[0]),
        "last": math.log(found[-1] / found[-2]) / math.log(values[-1] / values[-2]),
    }


def peak_of(point: Point) -> int:
    """Bytes that SAEs and their steps need at their peak, in a process of their own: all but the batch itself."""
    own = [sys.executable, "-m", "benchmarks.growth", "peak", json.dumps(asdict(point))]
    done = subprocess.run(own, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    return int(done.stdout)


@app.command
def peak(point: str) -> None:
    """Build what ``point`` (JSON) says, take steps, and write the bytes that took, at their peak, to standard output."""
    measured = Point(**json.loads(point))
    # What is loaded or compiled by the first step of any size is not this size's.
    small = replace(measured, d_in=32, d_sae=512, k=4, n_saes=1, batch_tokens=measured.n_positions)
    _take_steps(small.action())
    x = batch(measured.batch_tokens, measured.d_in, 0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the batch was made in must not serve the steps, unseen
    Path("/proc/self/clear_refs").write_text("5")  # from here on is what counts as the most
    before = psutil.Process().memory_info().rss
    _take_steps(measured.action(x))
    sys.stdout.write(f"{high_water() - before}\n")


def _take_steps(act: Action) -> None:
    for index in range(STEPS_FOR_MEMORY):
        act(index)


def high_water() -> int:
    """The most bytes this process ever held, as Linux counts them."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    app()
