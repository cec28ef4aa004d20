"""Linear probes: logistic regression on all features, and on the few whose class means differ the most."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from scipy import sparse  # pyright: ignore[reportMissingTypeStubs]
from threadpoolctl import threadpool_limits

MAX_ITERATIONS = 1000

Features = Float[np.ndarray, "_ _"] | sparse.csr_matrix


@dataclass(frozen=True)
class ProbeTask:
    """What the probes of one task on one kind of features read: rows of a table of features, and their labels.

    Attributes:
        features: one row a text; a sparse matrix for a bag of words, of which only the probe on all features is fitted.
        train_rows, test_rows: rows of ``features``.
        train_labels, test_labels: 0 or 1.
    """

    features: Features
    train_rows: Int[np.ndarray, " n_train"]
    train_labels: Int[np.ndarray, " n_train"]
    test_rows: Int[np.ndarray, " n_test"]
    test_labels: Int[np.ndarray, " n_test"]

    def n_probes(self, k_values: Sequence[int]) -> int:
        """How many probes :func:`fit_probes` fits."""
        return 1 if isinstance(self.features, sparse.csr_matrix) else 1 + len(k_values)


@dataclass(frozen=True)
class ProbeOutcome:
    """What the probes of one task got right.

    Attributes:
        correct: 1 or 0, NaN if the features are not finite; row 0 for the probe on all features, then a row for each k; a
            column for each test text.
        unconverged: how many of these probes stopped at 1000 iterations.
    """

    correct: Float[np.ndarray, "probes n_test"]
    unconverged: int

    @classmethod
    def mean(cls, several: Sequence[ProbeOutcome]) -> ProbeOutcome:
        """The mean over probes of the same task on features drawn several times: shares that were right."""
        return cls(np.mean([one.correct for one in several], axis=0), sum(one.unconverged for one in several))


def fit_probes(task: ProbeTask, k_values: Sequence[int]) -> ProbeOutcome:
    """Fit a probe on all features and one on the top k for each k; L2 penalty with C = 1, as in SAEBench.

    Args:
        task: features and labels.
        k_values: numbers of features; where there are fewer, all are used.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second, which every command would wait for

    if isinstance(task.features, sparse.csr_matrix):
        return _fit_bag(task, task.features)
    train, test = task.features[task.train_rows], task.features[task.test_rows]
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        return ProbeOutcome(np.full((1 + len(k_values), len(test)), np.nan), 0)
    ranking = rank_features(train, task.train_labels)
    # A feature that never varies in training has no say in a penalised probe, so leaving it out changes nothing but time.
    chosen = [np.flatnonzero(np.ptp(train, axis=0) > 0), *(ranking[:k] for k in k_values)]
    correct = np.empty((len(chosen), len(test)))
    unconverged = 0
    for index, columns in enumerate(chosen):
        if len(columns) == 0:
            correct[index] = task.test_labels == 0
            continue
        probe = LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS).fit(train[:, columns], task.train_labels)
        correct[index] = probe.predict(test[:, columns]) == task.test_labels
        unconverged += int(probe.n_iter_[0] >= MAX_ITERATIONS)
    return ProbeOutcome(correct, unconverged)


def _fit_bag(task: ProbeTask, counts: sparse.csr_matrix) -> ProbeOutcome:
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS).fit(counts[task.train_rows], task.train_labels)
    correct = probe.predict(counts[task.test_rows]) == task.test_labels
    return ProbeOutcome(correct[None].astype(np.float64), int(probe.n_iter_[0] >= MAX_ITERATIONS))


def rank_features(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " d"]:
    """Features by the absolute difference of their class means, largest first."""
    difference = features[labels == 1].mean(axis=0) - features[labels == 0].mean(axis=0)
    return np.argsort(-np.abs(difference), kind="stable")


def fit_all(tasks: Iterable[ProbeTask], k_values: Sequence[int]) -> Iterator[ProbeOutcome]:
    """:func:`fit_probes` for many tasks, on all cores; outcomes come in the order of the tasks."""
    # Threads: processes were slower on two cores, for the features have to be handed to them. One BLAS thread in each:
    # more were 5 to 25 times slower on matrices of this size.
    with threadpool_limits(limits=1), _unconverged_is_counted():
        parallel = Parallel(n_jobs=-1, backend="threading", return_as="generator")
        yield from cast(Iterator[ProbeOutcome], parallel(delayed(fit_probes)(task, k_values) for task in tasks))


@contextmanager
def _unconverged_is_counted() -> Generator[None, None, None]:
    """Silence the warning about what :class:`ProbeOutcome` counts anyway."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@dataclass(frozen=True)
class LinearProbe:
    """A logistic probe that is kept: it says 1 where ``features @ weight + bias`` is above 0."""

    weight: Float[np.ndarray, " d"]
    bias: float

    def correct(self, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """1 where the probe is right, else 0."""
        return ((features @ self.weight + self.bias > 0) == (labels > 0)).astype(np.float64)


def fit_linear(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> LinearProbe:
    """The probe of :func:`fit_probes` on all features, kept.

    Args:
        features: one row a text; finite.
        labels: 0 or 1, both present.
    """
    from sklearn.linear_model import LogisticRegression

    with threadpool_limits(limits=1), _unconverged_is_counted():
        probe = LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS).fit(features, labels)
    return LinearProbe(probe.coef_[0].astype(np.float64), float(probe.intercept_[0]))
