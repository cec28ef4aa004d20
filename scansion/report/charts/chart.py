"""A chart as data: drawn the same way into a page and onto paper, from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scansion.evals.statistics import Estimate

Number = float | None
Kind = Literal["line", "points", "faint points", "bars", "front", "rule", "ticks"]


@dataclass(frozen=True)
class Series:
    """Some points of a chart.

    Attributes:
        name: whose they are.
        arm: index of the arm, which decides the colour; None for a control or reference, drawn in grey.
        x, y: the points; None where there is no number.
        kind: ``line`` (with a band from ``low`` to ``high``), ``points`` (with bars), ``faint points``, ``bars`` (from the
            chart's base), ``front`` (a staircase), ``rule`` (a dashed line), ``ticks`` (short level strokes).
        low, high: interval of y.
        x_low, x_high: interval of x.
        dash: 0 for a whole line, 1 and 2 for broken ones.
    """

    name: str
    arm: int | None
    x: Sequence[Number]
    y: Sequence[Number]
    kind: Kind = "line"
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    x_low: Sequence[Number] | None = None
    x_high: Sequence[Number] | None = None
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis: its title, whether it is logarithmic, its range, and labels in place of numbers at some values."""

    title: str
    log: bool = False
    range: tuple[float, float] | None = None
    labels: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        key: its name in files.
        title, note: what it shows, and how to read it.
        base: where bars begin.
        bar_width: of one bar, in units of x.
        folded: whether a page shows it only on request, since another chart says more.
    """

    key: str
    title: str
    note: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    base: float = 0.0
    bar_width: float = 0.8
    folded: bool = False


def log_ticks(series: Sequence[Series]) -> tuple[tuple[float, str], ...]:
    """Ticks of a logarithmic y axis, written out: 1, 2 and 5 times the powers of ten, or all digits where those are few."""
    values = [value for one in series for value in one.y if value is not None and value > 0]
    if not values:
        return ()
    low, high = min(values), max(values)
    for digits in ((1, 2, 5), range(1, 10)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in digits]
        found = [tick for tick in found if 0.85 * low <= tick <= 1.15 * high]
        if len(found) >= 3:
            break
    return tuple((tick, f"{tick:,g}") for tick in found)


def split(estimates: Sequence[Estimate | None]) -> tuple[list[Number], list[Number], list[Number]]:
    """Values, lower and upper ends."""
    return (
        [one and one.value for one in estimates],
        [one and one.low for one in estimates],
        [one and one.high for one in estimates],
    )


def mean_estimate(by_seed: Sequence[Estimate]) -> Estimate | None:
    """Mean over seeds with its interval; of one seed, the interval that its evaluation gives; None for no seed."""
    if len(by_seed) <= 1:
        return by_seed[0] if by_seed else None
    return Estimate.of_seeds([one.value for one in by_seed if one.value is not None])


def grouped(n_groups: int, n_arms: int, arm: int, filled: float = 0.8) -> list[float]:
    """Where an arm's mark stands in each of some groups: side by side around the group's number."""
    return [group + filled * ((arm + 0.5) / n_arms - 0.5) for group in range(n_groups)]


def over_seeds(rows: Sequence[Sequence[Number]]) -> tuple[list[Number], list[Number], list[Number]]:
    """Mean, lowest and highest over seeds of lines that share their points; the ends are None where there is one seed."""
    table = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)
    known: np.ndarray = np.asarray(np.isfinite(table).all(axis=0))

    def shown(values: np.ndarray) -> list[Number]:
        return [float(value) if there else None for value, there in zip(values, known, strict=True)]

    mean = shown(table.mean(axis=0))
    if len(rows) == 1:
        nothing: list[Number] = [None] * len(mean)
        return mean, nothing, nothing
    return mean, shown(table.min(axis=0)), shown(table.max(axis=0))
