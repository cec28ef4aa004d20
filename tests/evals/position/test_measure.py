"""The figures of one state, from firing made up to be known."""

from __future__ import annotations

import numpy as np
import pytest

from scansion.evals.position.agreement import auroc
from scansion.evals.position.information import Null
from scansion.evals.position.measure import Measured, measure
from tests.evals.position.constructed import firing_of, made_up_text, runs


def measured(rate: float | None) -> tuple[Measured, np.ndarray]:
    text = made_up_text([6] * 32)
    fired = runs(6, 32, 3, rate=0.3, stay=0.3, seed=0)
    fired[0, :, 0] = True  # the first feature always fires at the first position
    firing = firing_of(text, fired)
    weights = np.zeros((6, 3))
    weights[:2] = 1.0
    null = Null.of(firing, 40, np.random.default_rng(0), rate=rate, max_draws=400)
    return measure(firing, null, weights, [weights[::-1]], 1, rate), np.array(
        [auroc(weights, firing.without(group))[1:].mean() for group in (None, *range(text.n_groups))]
    )


def test_each_interval_comes_from_leaving_out_one_group_after_another() -> None:
    found, expected = measured(0.05)
    assert found.varying["auroc"].value == pytest.approx(expected[0])
    assert found.varying["auroc"].without == pytest.approx(expected[1:])
    assert all(len(set(figure.without.tolist())) > 1 for figure in found.varying.values())


def test_a_feature_that_depends_on_the_position_is_found_and_the_rest_are_not() -> None:
    found, _ = measured(0.05)
    assert found.significant.tolist() == [True, False, False]
    assert found.plain["significant_share"] == pytest.approx(1 / 3)
    assert found.by_feature["p_value"][0] < 0.02 < found.by_feature["p_value"][1:].min()
    assert np.isnan(found.by_feature["auroc"][0]), "no mask binds a shared feature"
    assert not np.isnan(found.by_feature["auroc"][1:]).any()


def test_without_a_rate_nothing_is_called_significant() -> None:
    found, _ = measured(None)
    assert found.significant.tolist() == [False] * 3 and np.isnan(found.plain["significant_share"])
