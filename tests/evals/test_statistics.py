"""Intervals over seeds and text hold the truth where intervals over seeds alone do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from scansion.evals.statistics import CrossedMean, Estimate, TextGroups


def without_each(parts: np.ndarray) -> np.ndarray:
    """[S, G] parts -> means without each group."""
    n = parts.shape[1]
    return (parts.sum(axis=1, keepdims=True) - parts) / (n - 1)


@pytest.mark.parametrize(
    ("seeds", "texts", "both", "alone", "most"),
    # Standard deviations of seeds, of groups of text and of what they do together; coverage of the old
    # interval, and the most of the new.
    [
        (1.0, 0.0, 0.3, (0.92, 0.98), 0.98),
        (0.0, 1.0, 0.3, (0.0, 0.4), 0.98),
        (1.0, 3.0, 1.0, (0.6, 0.9), 0.98),
        (0.3, 1.0, 1.0, (0.7, 0.9), 0.98),
        (0.0, 0.0, 1.0, (0.92, 0.98), 1.0),
    ],
)
@pytest.mark.parametrize(("n_seeds", "n_groups"), [(5, 20), (3, 20), (5, 10)])
def test_coverage(
    seeds: float, texts: float, both: float, alone: tuple[float, float], most: float, n_seeds: int, n_groups: int
) -> None:
    generator = np.random.default_rng(0)
    n, crossed, old = 1000, 0, 0
    for _ in range(n):
        parts = (
            generator.normal(0, seeds, (n_seeds, 1))
            + generator.normal(0, texts, (1, n_groups))
            + generator.normal(0, both, (n_seeds, n_groups))
        )
        values = parts.mean(axis=1)
        found = CrossedMean.of(values.tolist(), without_each(parts)).estimate()
        crossed += found.low <= 0 <= found.high
        seeds_alone = Estimate.of_seeds(values.tolist())
        old += seeds_alone.low <= 0 <= seeds_alone.high
    assert 0.93 <= crossed / n <= most
    if n_seeds == 5:
        assert alone[0] <= old / n <= alone[1]


def test_text_that_makes_no_difference_leaves_the_interval_of_seeds() -> None:
    values = [0.80, 0.82, 0.85, 0.79]
    found = CrossedMean.of(values, np.repeat(np.array(values)[:, None], 20, axis=1))
    assert found.df == pytest.approx(3)
    alone = Estimate.of_seeds(values)
    assert found.estimate().low == pytest.approx(alone.low) and found.estimate().high == pytest.approx(alone.high)
    assert found.p == pytest.approx(ttest_1samp(values, 0.0).pvalue)


def test_the_test_agrees_with_the_interval() -> None:
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.3, 0.6, 0.9):
        parts = shift + generator.normal(0, 1, (4, 1)) * 0.3 + generator.normal(0, 1, (1, 12))
        found = CrossedMean.of(parts.mean(axis=1).tolist(), without_each(parts))
        assert (found.p < 0.05) == found.estimate().excludes_zero


def test_a_ratio_is_known_without_each_group() -> None:
    above, below = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 4.0])
    groups = TextGroups.of_ratio(above, below)
    assert groups.leaving_out() == pytest.approx([6 / 8, 5 / 6, 3 / 6])
    assert TextGroups.of_ratio(np.array([1.0, np.nan]), np.array([1.0, 1.0])) is None
    assert TextGroups.of_ratio(np.array([1.0, 0.0]), np.array([1.0, 0.0])) is None, "nothing is left without the first"
