"""Agreement of firing with a mask and of profiles with one another: closed forms, and brute force where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scansion.evals.position.agreement import auroc, divergence, inside, overlap, phi, reliability, retention
from scansion.evals.position.firing import Profile
from tests.evals.position.constructed import profile

MASK = np.array([[1.0, 1.0, 0.0, 0.0]]).T
TOKENS = [10] * 4


def test_auroc_is_that_of_the_tokens_one_by_one() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 9, size=7)
    counts = generator.binomial(tokens[:, None], 0.4, size=(7, 5)).astype(float)
    weights = generator.integers(0, 4, size=(7, 5)) / 3
    found = auroc(weights, Profile(counts, counts, tokens))
    for feature in range(5):
        labels = [i < counts[p, feature] for p in range(7) for i in range(tokens[p])]
        scores = [weights[p, feature] for p in range(7) for _ in range(tokens[p])]
        assert found[feature] == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_at_the_extremes() -> None:
    always, never_allowed, flat, dead = [10, 10, 0, 0], [0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 0, 0]
    found = auroc(np.repeat(MASK, 4, axis=1), profile([always, never_allowed, flat, dead], TOKENS))
    assert found[:3] == pytest.approx([1.0, 0.0, 0.5]) and np.isnan(found[3])
    # Half the tokens it is allowed: of the 30 silent ones 10 are inside and count half.
    assert auroc(MASK, profile([[5, 5, 0, 0]], TOKENS)) == pytest.approx(1 - 0.5 * 10 / 30)
    assert auroc(np.ones((4, 1)), profile([[5, 1, 0, 0]], TOKENS)) == pytest.approx(0.5)


def test_overlap_at_the_extremes() -> None:
    found = overlap(np.repeat(MASK, 3, axis=1), profile([[3, 3, 0, 0], [0, 0, 1, 9], [4, 4, 4, 4]], TOKENS))
    assert found == pytest.approx([1.0, 0.0, 0.5])


def test_retention_is_1_inside_0_for_no_preference_and_negative_outside() -> None:
    counts = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    mass = [[7.0, 1.0, 0, 0], [2.0, 3.0, 4.0, 1.0], [0, 0, 1.0, 5.0]]
    found = retention(np.repeat(MASK, 3, axis=1), profile(counts, TOKENS, mass))
    assert found == pytest.approx([1.0, 0.0, -1.0])


def test_chance_is_the_share_of_tokens_and_soft_weights_count_in_part() -> None:
    uneven = profile([[1, 1, 1, 1]], [30, 10, 10, 10], [[30.0, 10.0, 10.0, 10.0]])
    assert retention(MASK, uneven) == pytest.approx(0.0)
    soft = np.array([[2.0, 1.0, 0.0, 0.0]]).T
    assert inside(soft, np.array([[1.0, 1.0, 1.0, 1.0]]).T) == pytest.approx((1 + 0.5) / 4)
    assert np.isnan(retention(np.ones((4, 1)), uneven)), "a mask open everywhere cannot be retained"
    assert np.isnan(retention(np.zeros((4, 1)), uneven)), "nor one that is open at positions that were not used alone"
    assert np.isnan(overlap(np.zeros((4, 1)), uneven))


def test_reliability_and_divergence_at_the_extremes() -> None:
    one, twice, opposite = ([[1, 2, 3, 4]], [[2, 4, 6, 8]], [[4, 3, 2, 1]])
    assert reliability(profile(one, TOKENS), profile(twice, TOKENS)) == pytest.approx(1.0)
    assert reliability(profile(one, TOKENS), profile(opposite, TOKENS)) == pytest.approx(-1.0)
    assert np.isnan(reliability(profile(one, TOKENS), profile([[1, 1, 1, 1]], TOKENS)))
    a, b = np.array([[1.0, 1.0, 0.0, 0.0]]).T, np.array([[0.0, 0.0, 2.0, 2.0]]).T
    assert divergence(a, 3 * a) == pytest.approx(0.0, abs=1e-12)
    assert divergence(a, b) == pytest.approx(1.0)
    # Divergence of (1, 0) and (1/2, 1/2): H(3/4) - 1/2.
    half = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert divergence(np.array([[1.0, 0.0]]).T, np.array([[1.0, 1.0]]).T) == pytest.approx(half)


def test_phi_is_the_correlation_of_the_two_truth_values() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(50) < 0.4, generator.random(50) < 0.6
    found = phi(np.array([(a & b).sum()]), np.array([a.sum()]), np.array([b.sum()]), 50.0)
    assert found == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert np.isnan(phi(np.array([5]), np.array([5]), np.array([50]), 50.0))[0]


def test_permuting_features_permutes_everything() -> None:
    generator = np.random.default_rng(1)
    counts = generator.integers(0, 10, size=(6, 5)).astype(float)
    mass, weights, order = generator.random((6, 5)), generator.random((6, 5)), np.array([4, 2, 0, 1, 3])
    here = Profile(counts, mass, np.full(6, 10))
    there = Profile(counts[:, order], mass[:, order], np.full(6, 10))
    for figure in (auroc, overlap, retention):
        assert figure(weights[:, order], there) == pytest.approx(figure(weights, here)[order])


def test_each_feature_is_measured_by_itself() -> None:
    """Features side by side have the figures that each has alone."""
    generator = np.random.default_rng(2)
    counts, other = (generator.integers(0, 10, size=(6, 4)).astype(float) for _ in range(2))
    whole, there = (Profile(values, values, np.full(6, 10)) for values in (counts, other))
    weights = generator.integers(0, 3, size=(6, 4)) / 2
    for index in range(4):
        one, alone = slice(index, index + 1), Profile(counts[:, [index]], counts[:, [index]], np.full(6, 10))
        again = Profile(other[:, [index]], other[:, [index]], np.full(6, 10))
        for figure in (auroc, overlap, retention):
            assert figure(weights, whole)[index] == pytest.approx(figure(weights[:, one], alone)[0])
        assert reliability(whole, there)[index] == pytest.approx(reliability(alone, again)[0])
        assert divergence(counts, other)[index] == pytest.approx(divergence(counts[:, one], other[:, one])[0])
        assert reliability(alone, again)[0] == pytest.approx(np.corrcoef(counts[:, index], other[:, index])[0, 1])


def test_phi_of_few_tokens() -> None:
    # Two truth values over four tokens that never hold together, each once; and the same one twice.
    assert phi(np.array([0.0]), np.array([1.0]), np.array([1.0]), 4.0) == pytest.approx(-1 / 3)
    assert phi(np.array([1.0]), np.array([1.0]), np.array([1.0]), 2.0) == pytest.approx(1.0)
