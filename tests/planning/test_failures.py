"""Simulated failures: they agree with exact means, and with Young's formula where it holds and not where it does not."""

from __future__ import annotations

import math

import pytest

from scansion.planning import Reliability, best_interval, straggler_factor, young
from scansion.planning.failures import simulate

HOUR = 3600.0
DAY = 24 * HOUR


def exact_mean(job: Reliability, interval: float) -> float:
    """Mean time to the end with exponential failures: each piece costs e^(R/M) M (e^(s/M) - 1) for s seconds of uptime."""
    pieces = math.ceil(job.work / interval) - 1
    cost = math.exp(job.restart / job.mtbf) * job.mtbf
    last = job.work - pieces * interval
    return cost * (pieces * math.expm1((interval + job.checkpoint) / job.mtbf) + math.expm1(last / job.mtbf))


@pytest.mark.parametrize("interval", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("work", [5 * HOUR, 60 * HOUR])
def test_the_mean_is_the_exact_one(interval: float, work: float) -> None:
    job = Reliability(work=work, checkpoint=120, restart=300, mtbf=10 * HOUR)
    (found,) = simulate(job, [interval * HOUR], seed=3)
    assert found.mean == pytest.approx(exact_mean(job, interval * HOUR), rel=0.02)
    assert found.low <= found.mean <= found.high


def test_the_best_interval_is_youngs_where_checkpoints_are_short() -> None:
    job = Reliability(work=30 * DAY, checkpoint=30, restart=120, mtbf=1 * DAY)
    best, tried = best_interval(job)
    formula = young(job.checkpoint, job.mtbf)
    assert formula == pytest.approx(math.sqrt(2 * 30 * DAY))
    assert 0.6 < best.seconds / formula < 1.7  # the minimum is flat
    (at_formula,) = simulate(job, [formula])
    assert at_formula.mean <= 1.002 * best.mean
    # And no flat line: an eighth of it and eight times it both lose.
    assert tried[0].mean > 1.02 * best.mean and tried[-1].mean > 1.02 * best.mean


def test_youngs_interval_is_too_long_where_checkpoints_take_half_the_time_between_failures() -> None:
    job = Reliability(work=10 * DAY, checkpoint=HOUR / 2, restart=60, mtbf=HOUR)
    best, _ = best_interval(job)
    (at_formula,) = simulate(job, [young(job.checkpoint, job.mtbf)])
    assert best.seconds < 0.85 * young(job.checkpoint, job.mtbf)
    assert math.isfinite(at_formula.mean) and at_formula.mean > 1.02 * best.mean


def test_a_job_far_shorter_than_the_time_between_failures_needs_no_checkpoint() -> None:
    best, _ = best_interval(Reliability(work=HOUR, checkpoint=60, restart=60, mtbf=300 * DAY))
    assert best.seconds == HOUR


def test_failures_in_bursts_cost_less() -> None:
    even, bursts = (
        Reliability(work=30 * DAY, checkpoint=60, restart=60, mtbf=DAY, shape=shape) for shape in (1.0, 0.5)
    )
    (one,), (other,) = (simulate(job, [4 * HOUR]) for job in (even, bursts))
    assert other.mean < 0.995 * one.mean


def test_an_interval_without_an_end_in_sight_is_infinite() -> None:
    (found,) = simulate(Reliability(work=DAY, checkpoint=60, restart=60, mtbf=60), [HOUR])
    assert found.mean == math.inf


def test_the_same_seed_gives_the_same_figures() -> None:
    job = Reliability(work=3 * DAY, checkpoint=60, restart=60, mtbf=DAY)
    assert simulate(job, [HOUR], seed=1) == simulate(job, [HOUR], seed=1) != simulate(job, [HOUR], seed=2)


def test_the_slowest_of_two_is_slower_by_a_known_amount() -> None:
    # For small variation the times are nearly normal: the mean of the larger of two is 1 + v / sqrt(pi).
    assert straggler_factor(2, 0.05) == pytest.approx(1 + 0.05 / math.sqrt(math.pi), abs=0.004)
    assert straggler_factor(1, 0.5) == 1.0 and straggler_factor(64, 0.0) == 1.0
    assert 1.3 < straggler_factor(64, 0.15) < straggler_factor(5000, 0.15) < 2
