"""The test of whether firing depends on the position keeps its promise for runs as long as contexts, and still finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from scansion.evals.position.flips import flip_p_values
from scansion.evals.reading.groups import cluster_contexts
from tests.evals.position.constructed import firing_of, made_up_text


def along_documents(
    n_documents: int, contexts: int, n_features: int, rate: float, memory: float, seed: int, n_positions: int = 32
) -> np.ndarray:
    """Firing that knows no position, [P, C, F]: a stationary chain along each document, cut into contexts.

    Each document has a rate of its own; a state is drawn again after ``memory`` tokens on average.
    """
    generator = np.random.default_rng(seed)
    own = np.clip(rate * generator.gamma(0.5, 2.0, size=(n_documents, n_features)), 0, 0.9)
    fired = np.zeros((n_positions * contexts, n_documents, n_features), dtype=bool)
    state = generator.random(own.shape) < own
    for token in range(len(fired)):
        fired[token] = state
        again = generator.random(own.shape) < 1 / memory
        state = np.where(again, generator.random(own.shape) < own, state)
    by_context = fired.reshape(contexts, n_positions, n_documents, n_features).transpose(1, 2, 0, 3)
    return by_context.reshape(n_positions, n_documents * contexts, n_features)


def p_values(fired: np.ndarray, n_documents: int, **settings: float) -> np.ndarray:
    n_contexts = fired.shape[1]
    text = made_up_text([len(fired)] * n_contexts)
    documents = np.repeat(np.arange(n_documents), n_contexts // n_documents)
    object.__setattr__(text, "clusters", cluster_contexts(documents, 64, seed=0))
    draw = np.random.default_rng(0)
    return flip_p_values(firing_of(text, fired), 100, draw, **settings)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("documents", "contexts"), [(200, 1), (28, 8), (6, 40)])
@pytest.mark.parametrize("memory", [1.5, 32, 100])
def test_as_few_are_called_positional_as_promised(documents: int, contexts: int, memory: float) -> None:
    n = 600
    p = p_values(along_documents(documents, contexts, n, 0.15, memory, seed=1), documents)
    for level in (0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * (level * (1 - level) / n) ** 0.5


def test_false_discoveries_are_kept_among_long_runs_and_true_ones_found() -> None:
    false, found = [], 0
    for seed in range(4):
        fired = along_documents(100, 1, 300, 0.15, 64, seed=seed)
        planted = slice(0, 30)
        generator = np.random.default_rng(seed)
        fired[:4, :, planted] |= generator.random((4, 100, 30)) < 0.5
        p = p_values(fired, 100, rate=0.05, max_draws=20_000)
        called = false_discovery_control(p) <= 0.05
        found += called[planted].sum()
        false.append(called[30:].sum() / max(1, called.sum()))
    assert np.mean(false) <= 0.08  # 0.05, and what four draws of about 30 discoveries scatter
    assert found >= 0.95 * 4 * 30


def test_clusters_are_whole_documents_or_blocks_of_one() -> None:
    many = cluster_contexts(np.repeat(np.arange(200), 3), 64, seed=0)
    assert len(np.unique(many)) == 64
    assert all(len(np.unique(one)) == 1 for one in many.reshape(200, 3))
    doc_ids = np.repeat([7, 3, 5], [100, 2, 30])
    few = cluster_contexts(doc_ids, 64, seed=0)
    assert (np.diff(np.unique(few)) == 1).all() and 50 <= len(np.unique(few)) <= 64
    for document in (7, 3, 5):
        assert (np.diff(few[doc_ids == document]) >= 0).all(), "blocks of consecutive contexts"
    assert all(len(np.unique(doc_ids[few == one])) == 1 for one in np.unique(few)), "no block spans two documents"


def test_contexts_that_fire_more_and_end_sooner_are_not_called_positional() -> None:
    # A feature of short contexts is seen at early positions more often; each context is compared with its own rate.
    generator = np.random.default_rng(0)
    lengths = [8] * 60 + [32] * 60
    own = np.array([0.4] * 60 + [0.05] * 60)
    fired = generator.random((32, 120, 300)) < own[:, None]
    p, draws = flip_p_values(firing_of(made_up_text(lengths), fired), 100, generator)
    assert (p <= 0.05).mean() <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert (draws == 100).all()
