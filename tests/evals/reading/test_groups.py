"""Groups of documents never share one, and the jackknife's interval is the one its closed form gives."""

from __future__ import annotations

import numpy as np
import pytest

from scansion.errors import EvalError
from scansion.evals.reading.groups import Jackknife, deal_documents


def test_no_document_is_in_two_groups_and_groups_are_alike() -> None:
    generator = np.random.default_rng(0)
    documents = generator.integers(0, 37, size=500)
    groups = deal_documents(documents, 10, seed=0)
    for document in np.unique(documents):
        assert len(np.unique(groups[documents == document])) == 1
    sizes = np.bincount(groups, minlength=10)
    assert sizes.max() - sizes.min() <= np.bincount(documents).max()
    assert (deal_documents(documents, 10, seed=0) == groups).all()


def test_few_documents_give_fewer_groups_and_too_few_an_error() -> None:
    assert set(deal_documents(np.array([0, 1, 2, 3, 4, 4]), 10, seed=0)) == {0, 1, 2, 3}
    with pytest.raises(EvalError, match=r"has 3 documents, too few .* hold out at least 4"):
        deal_documents(np.array([5, 5, 6, 7]), 10, seed=0)


def test_the_interval_of_a_mean_is_that_of_student() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, size=10)

    def mean(without: int | None) -> float:
        return float(np.delete(values, without).mean() if without is not None else values.mean())

    estimate = Jackknife.of(10, mean).estimate()
    assert estimate.value == pytest.approx(values.mean())
    # t with 9 degrees of freedom: 97.5% lie below 2.262157.
    assert estimate.high - estimate.value == pytest.approx(2.262157 * values.std(ddof=1) / 10**0.5, rel=1e-5)


def test_a_difference_of_figures_that_vary_together_does_not_vary() -> None:
    one = Jackknife(3.0, np.array([2.0, 3.0, 4.0]))
    other = Jackknife(1.0, np.array([0.0, 1.0, 2.0]))
    difference = (one - other).estimate()
    assert difference.low == difference.value == difference.high == 2.0
    assert Jackknife.mean([one, other]).value == 2.0


def test_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = generator.exponential(1.0, size=10)
        found = Jackknife.of(10, lambda g, v=values: float((np.delete(v, g) if g is not None else v).mean())).estimate()
        covered += found.low <= 1.0 <= found.high
    assert 0.85 <= covered / 300 <= 0.98
