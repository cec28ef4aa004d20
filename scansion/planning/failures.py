"""How often to write checkpoints: failures and slow ranks, simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1_000
"""Simulated jobs per interval, and steps from which the slowest rank is estimated."""
MOST_FAILURES = 200
"""A job with more failures than this is simulated for this many mean times between failures, and its time scaled up."""
HOPELESS = 5
"""An interval with so many times more failures than that has no end in sight."""


@dataclass(frozen=True)
class Reliability:
    """How a job on several machines fails and recovers.

    Attributes:
        work: seconds it would take without failures or checkpoints.
        checkpoint: seconds that writing one takes; training waits meanwhile.
        restart: seconds from a failure until training continues, reading the checkpoint included.
        mtbf: mean seconds between failures of the whole job: that of one machine divided by their number.
        shape: of the Weibull distribution of times between failures; 1 is exponential, and below 1 failures come in bursts.
    """

    work: float
    checkpoint: float
    restart: float
    mtbf: float
    shape: float = 1.0


@dataclass(frozen=True)
class Interval:
    """What one interval gives: seconds between checkpoints, mean seconds to the end, and the 5% and 95% quantiles."""

    seconds: float
    mean: float
    low: float
    high: float


def young(checkpoint: float, mtbf: float) -> float:
    """The interval that loses least to first order, sqrt(2 C M) (Young 1974, Daly 2006); good while C is far below M."""
    return math.sqrt(2 * checkpoint * mtbf)


def straggler_factor(ranks: int, variation: float, seed: int = 0) -> float:
    """How much longer a step is than its mean if every rank waits for the slowest.

    Step times of a rank are drawn from a lognormal distribution, independently of other ranks and steps.

    Args:
        ranks: that wait for each other.
        variation: standard deviation of a rank's step times, divided by their mean.
        seed: of the draws.
    """
    if ranks == 1 or variation == 0:
        return 1.0
    sigma = math.sqrt(math.log1p(variation**2))
    generator = np.random.default_rng(seed)
    slowest = np.full(DRAWS, -np.inf)
    for start in range(0, ranks, 1024):  # at most 16 MB at once, however many ranks
        drawn = generator.standard_normal((DRAWS, min(1024, ranks - start)))
        slowest = np.maximum(slowest, drawn.max(axis=1))
    return float(np.exp(sigma * slowest - sigma**2 / 2).mean())


def simulate(job: Reliability, intervals: Sequence[float], seed: int = 0, draws: int = DRAWS) -> list[Interval]:
    """Times to the end of many simulated jobs, for each checkpoint interval; all intervals meet the same failures.

    A failure loses what was done since the last checkpoint, also if the next one is being written. A restart can fail too.

    Args:
        job: what fails, and how often.
        intervals: seconds of training between checkpoints.
        seed: of the draws.
        draws: jobs to simulate.
    """
    share = min(1.0, MOST_FAILURES * job.mtbf / job.work)
    work = job.work * share
    generator = np.random.default_rng(seed)
    scale = job.mtbf / math.gamma(1 + 1 / job.shape)
    every = np.asarray(intervals, dtype=float)[:, None]
    left = np.full((len(intervals), draws), work)
    clock = np.zeros_like(left)
    running = np.ones_like(left, dtype=bool)
    waiting = 0.0  # for the restart, which the first start does not need
    for _ in range(HOPELESS * MOST_FAILURES):
        up = scale * generator.weibull(job.shape, draws)[None, :]
        usable = np.maximum(up - waiting, 0.0)
        pieces = np.maximum(np.ceil(left / every) - 1, 0)  # checkpoints until the end; the last piece needs none
        needed = left + pieces * job.checkpoint
        ends = running & (usable >= needed)
        clock += np.where(ends, waiting + needed, np.where(running, up, 0.0))
        saved = np.minimum(np.floor(usable / (every + job.checkpoint)), pieces)
        left = np.where(running & ~ends, left - saved * every, left)
        running &= ~ends
        if not running.any():
            break
        waiting = job.restart
    clock[running] = np.inf
    clock /= share
    return [
        Interval(float(seconds), float(times.mean()), float(np.quantile(times, 0.05)), float(np.quantile(times, 0.95)))
        if np.isfinite(times).all()
        else Interval(float(seconds), math.inf, math.inf, math.inf)
        for seconds, times in zip(intervals, clock, strict=True)
    ]


def best_interval(job: Reliability, seed: int = 0, draws: int = DRAWS) -> tuple[Interval, list[Interval]]:
    """The interval with the shortest mean time to the end, and all that were tried: around Young's, up to the whole job."""
    middle = young(job.checkpoint, job.mtbf)
    tried = sorted({min(job.work, middle * 2 ** (step / 4)) for step in range(-12, 13)})
    found = simulate(job, tried, seed, draws)
    return min(found, key=lambda one: one.mean), found
