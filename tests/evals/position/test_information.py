"""Information has its closed form at the extremes, and its null holds for firing that comes in runs but knows no position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scansion.evals.position.information import Null, effective_positions, firing_entropy, information
from tests.evals.position.constructed import firing_of, made_up_text, profile, runs


def entropy(p: float) -> float:
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def test_a_feature_that_always_fires_at_one_position_only_tells_all_that_firing_can() -> None:
    one = profile([[0, 20, 0, 0]], [20] * 4)
    assert information(one) == pytest.approx(entropy(0.25)) == firing_entropy(one)


def test_uniform_constant_and_dead_features_tell_nothing() -> None:
    flat = profile([[5, 5, 5, 5], [10, 10, 10, 10], [0, 0, 0, 0]], [10] * 4)
    assert information(flat) == pytest.approx([0, 0, 0], abs=1e-12)


def test_uneven_tokens_do_not_count_as_information() -> None:
    assert information(profile([[10, 5, 1]], [100, 50, 10])) == pytest.approx(0.0, abs=1e-12)


def test_information_of_two_positions_has_its_closed_form() -> None:
    expected = entropy(0.4) - 0.5 * (entropy(0.3) + entropy(0.5))
    assert information(profile([[3, 5]], [10, 10])) == pytest.approx(expected)


def test_effective_positions_at_the_extremes() -> None:
    rates = np.array([[0, 1, 0, 0], [0.3] * 4, [0.5, 0.5, 0, 0], [0] * 4]).T
    assert effective_positions(rates)[:3] == pytest.approx([1, 4, 2])
    assert np.isnan(effective_positions(rates)[3])


def test_the_spread_of_a_sample_is_unbiased_for_few_firings() -> None:
    draws = np.random.default_rng(0).integers(32, size=(4000, 6))
    counts = np.stack([np.bincount(row, minlength=32) for row in draws], axis=1).astype(np.float64)
    plenty = np.full(32, 10**6)
    assert (1 / effective_positions(counts, plenty)).mean() == pytest.approx(1 / 32, rel=0.1)
    assert (1 / effective_positions(counts)).mean() > 4 / 32, "the plain form makes rare features look restricted"


def test_the_spread_allows_for_uneven_and_finite_text() -> None:
    tokens = np.array([200, 100, 50, 25])
    always = np.stack([tokens * [1, 1, 0, 0], tokens], axis=1).astype(np.float64)
    assert effective_positions(always, tokens) == pytest.approx([2, 4]), (
        "a feature that always fires there is no sample"
    )
    counts = np.random.default_rng(0).binomial(tokens[:, None], 0.1, size=(4, 4000)).astype(np.float64)
    assert (1 / effective_positions(counts, tokens)).mean() == pytest.approx(1 / 4, rel=0.02)
    few = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]], dtype=np.float64).T
    spread = effective_positions(few, tokens)
    assert spread[0] == np.inf and np.isnan(spread[1]) and spread[2] == pytest.approx(1)


def null_of(fired: np.ndarray, lengths: list[int], **settings: float) -> tuple[Null, np.ndarray]:
    firing = firing_of(made_up_text(lengths), fired)
    return Null.of(firing, 100, np.random.default_rng(0), **settings), information(firing.without(None))  # type: ignore[arg-type]


def test_firing_in_runs_that_knows_no_position_is_not_called_positional() -> None:
    lengths = np.random.default_rng(1).integers(16, 33, size=120).tolist()
    fired = runs(32, 120, 200, rate=0.15, stay=0.95, seed=2)
    null, observed = null_of(fired, lengths, rate=0.05, max_draws=20_000)
    # 200 p-values below 0.05 are binomial with mean 10 and standard deviation 3.1.
    assert (null.p_value <= 0.05).sum() <= 10 + 3 * 3.1
    assert (null.q_value() <= 0.05).mean() <= 0.01
    assert np.mean(observed - null.information) == pytest.approx(0, abs=0.1 * observed.mean())


def test_tokens_shuffled_one_by_one_would_call_runs_positional() -> None:
    fired = runs(32, 120, 200, rate=0.15, stay=0.95, seed=2)
    text, generator = made_up_text([32] * 120), np.random.default_rng(3)
    whole = information(firing_of(text, fired).without(None))
    shuffled = [information(firing_of(text, generator.permuted(fired, axis=0)).without(None)) for _ in range(40)]
    # By chance one in 41 would lie above all 40 draws.
    assert (np.max(shuffled, axis=0) < whole).mean() > 3 / 41


def test_a_null_has_no_information_left_and_a_planted_feature_is_found() -> None:
    fired = runs(32, 160, 300, rate=0.1, stay=0.5, seed=4)
    fired[:8, :, 0] |= np.random.default_rng(5).random((8, 160)) < 0.3
    null, observed = null_of(fired, [32] * 160, rate=0.05, max_draws=20_000)
    q = null.q_value()
    assert q[0] <= 0.05 and (q[1:] <= 0.05).sum() <= 1
    # 100 draws cannot find one feature among 300: the smallest p-value they allow is 0.0099, 300 times that is 3.
    assert null.draws[0] > 100 and (null.draws[1:] == 100).mean() > 0.9
    assert (observed - null.information)[0] > 10 * np.abs((observed - null.information)[1:]).mean()


def test_a_feature_that_never_fired_has_no_draws_and_no_discovery() -> None:
    fired = runs(16, 24, 3, rate=0.3, stay=0.2, seed=6)
    fired[..., 1] = False
    null, _ = null_of(fired, [16] * 24, rate=0.05, max_draws=1000)
    assert null.draws[1] == 0 and null.p_value[1] == 1 and null.q_value()[1] == 1
    assert np.isnan(null.effective_positions[1]) and null.information[1] == 0


def test_short_contexts_are_turned_within_their_own_length() -> None:
    # All fire at their last token: with lengths that differ this is spread over positions, and turning must never put
    # a firing where a context has no token.
    lengths = [4, 7, 8, 5] * 6
    fired = np.zeros((8, 24, 1), dtype=bool)
    for context, length in enumerate(lengths):
        fired[length - 1, context] = True
    firing = firing_of(made_up_text(lengths), fired)
    null = Null.of(firing, 50, np.random.default_rng(0))
    assert 0 < null.information[0] < information(firing.without(None))[0]


def test_contexts_are_turned_over_the_tokens_that_count() -> None:
    lengths = [4, 7, 8, 5] * 6
    fired = runs(8, 24, 3, rate=0.3, stay=0.5, seed=2)
    text = made_up_text(lengths)
    said = replace(text, counted=torch.from_numpy(text.there))
    nulls = [Null.of(firing_of(one, fired), 30, np.random.default_rng(0)) for one in (text, said)]
    assert np.array_equal(nulls[0].information, nulls[1].information), "the same tokens, said in another way"

    counted = np.random.default_rng(3).random((8, 24)) < 0.6
    counted[0] = True
    left = replace(text, lengths=counted.sum(axis=0), counted=torch.from_numpy(counted))
    always = firing_of(left, np.ones((8, 24, 1), dtype=bool))
    null = Null.of(always, 30, np.random.default_rng(0))
    assert null.information[0] == pytest.approx(0, abs=1e-12), "one that fires on every token still does when turned"
    assert null.p_value[0] == 1


def test_permuting_features_permutes_information_and_nulls() -> None:
    fired = runs(16, 40, 6, rate=0.2, stay=0.5, seed=7)
    order = np.array([3, 1, 5, 0, 2, 4])
    null, observed = null_of(fired, [16] * 40)
    other_null, other = null_of(fired[..., order], [16] * 40)
    assert other == pytest.approx(observed[order])
    assert other_null.information == pytest.approx(null.information[order])
    assert other_null.p_value == pytest.approx(null.p_value[order])
