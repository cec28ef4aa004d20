"""Localised features: which count, and whether they peak at positions that their mask leaves open."""

from __future__ import annotations

import numpy as np
import pytest

from scansion.evals.position import Localised, localised_features
from scansion.evals.position.information import effective_positions

P, TOKENS = 16, np.full(16, 400)


def measured(counts: np.ndarray, mask: np.ndarray, q_value: np.ndarray | float = 0.0) -> Localised:
    profiles = {
        "counts.lifted": counts,
        "tokens": TOKENS,
        "mask": mask.astype(np.float16),
        "lifted.q_value": np.broadcast_to(q_value, counts.shape[1:]),
        "lifted.effective_positions": effective_positions(counts, TOKENS),
    }
    return localised_features(profiles, "lifted")


def at(*peaks: int, times: int = 100) -> np.ndarray:
    """Counts of features that fire at one position each."""
    counts = np.zeros((P, len(peaks)))
    counts[list(peaks), np.arange(len(peaks))] = times
    return counts


def bands(*blocks: int) -> np.ndarray:
    """Masks that are open in one of four blocks of four positions each."""
    return np.stack([np.arange(P) // 4 == block for block in blocks], axis=1).astype(float)


def test_only_frequent_significant_narrow_features_count() -> None:
    flat, rare, half = np.full((P, 1), 100.0), at(3, times=49), np.zeros((P, 1))
    half[:9] = 100
    counts = np.concatenate([at(3, 3), flat, rare, half], axis=1)
    found = measured(counts, np.ones((P, 5)), np.array([0.0, 0.2, 0.0, 0.0, 0.0]))
    assert (found.n_frequent, found.n) == (4, 1)
    assert (found.n_bound, found.own_share, found.own_share_chance) == (0, None, None), (
        "open everywhere: nothing binds them"
    )


def test_peaks_at_own_positions_are_compared_with_masks_of_other_features() -> None:
    mask = bands(0, 0, 0, 1)
    found = measured(at(0, 1, 5, 6), mask)
    assert (found.n_bound, found.own_share) == (4, 0.75)
    # A peak in block 0 meets three masks of four, one in block 1 one of four.
    assert found.own_share_chance == pytest.approx((0.75 + 0.75 + 0.25 + 0.25) / 4)


def test_chance_is_the_mean_over_permuted_masks() -> None:
    draw = np.random.default_rng(0)
    counts, mask = at(*draw.integers(0, P, 40)), bands(*draw.integers(0, 4, 40))
    permuted = [measured(counts, mask[:, draw.permutation(40)]).own_share for _ in range(400)]
    assert measured(counts, mask).own_share_chance == pytest.approx(np.mean(permuted), abs=0.01)


def test_weights_that_close_nothing_bind_nothing() -> None:
    mask = np.concatenate([np.linspace(0.1, 0.9, P)[:, None], np.ones((P, 1)), bands(2)], axis=1)
    found = measured(at(8, 8, 8), mask)
    assert (found.n, found.n_bound, found.own_share, found.own_share_chance) == (3, 1, 1.0, 1.0)


def test_rates_decide_where_the_peak_is() -> None:
    counts = np.zeros((P, 1))
    counts[0], counts[12] = 60, 50
    tokens = TOKENS.copy()
    tokens[12] = 100
    profiles = {"counts.lifted": counts, "tokens": tokens, "mask": bands(3)}
    profiles |= {"lifted.q_value": np.zeros(1), "lifted.effective_positions": np.ones(1)}
    assert localised_features(profiles, "lifted").own_share == 1.0
