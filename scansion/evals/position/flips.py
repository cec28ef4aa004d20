"""Whether a feature's firing depends on the position: a test that clusters of contexts agree where it fires more."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from scansion.evals.position.firing import Events, Firing

# Relative rounding of a sum of squares; flips within it of the observation count as equal to it.
_TIE = 1e-9
_CHUNK_NUMBERS = 8_000_000


def flip_p_values(
    firing: Firing, n_draws: int, generator: np.random.Generator, *, rate: float | None = None, max_draws: int = 0
) -> tuple[Float[np.ndarray, "F"], Int[np.ndarray, "F"]]:
    """p-values of the hypothesis that a feature fires alike at every position, and the draws behind each.

    For cluster g (``Text.clusters``: whole documents, or blocks of a document's contexts) and position p, ``y_gp`` is how
    often the feature fired, less what it would have if each context fired at its own rate everywhere. The statistic is
    ``sum_p (sum_g y_gp)^2 / n_p``, which is large where clusters agree. If position does not matter, ``y_g`` is as likely as
    ``-y_g`` in the limit of many contexts, so that the statistic with random signs for the clusters is its null: the wild
    cluster bootstrap (Cameron, Gelbach and Miller 2008) as a randomisation test (Canay, Romano and Shaikh 2017). Signs leave
    everything within a cluster as it is, however long its runs of firing, whatever the contexts' own rates. Turning contexts
    as rings does not: it breaks runs where a context starts, and with runs as long as contexts finds twice as many features
    as it promises. Simulated in tests/evals/position/test_flips.py. A feature that few clusters hold is hardly ever found.

    ``p = (1 + draws at or above the observation) / (1 + draws)``; 1 for a feature that never fired.

    Args:
        firing: of one SAE.
        n_draws: for every feature.
        generator: of the signs.
        rate: false discovery rate to resolve p-values for: features that no draw has reached get more draws, until their
            p-value is small enough for Benjamini and Hochberg at that rate, or ``max_draws`` are made. A p-value made so is
            still at most t with a chance of at most t. None for no more draws than ``n_draws``.
        max_draws: most draws per feature.
    """
    reached, n = (np.zeros(firing.d_sae, dtype=np.int64) for _ in range(2))
    alive = np.flatnonzero(firing.counts.sum(axis=(0, 1)) > 0)

    def add(features: Int[np.ndarray, "w"], draws: int) -> None:
        for chosen, events in firing.events(features):
            reached[features[chosen]] += _reached(firing, len(chosen), events, draws, generator)
        n[features] += draws

    add(alive, n_draws)
    while rate is not None:
        unreached = alive[reached[alive] == 0]
        if len(unreached) == 0:
            break
        done = int(n[unreached].min())
        wanted = min(math.ceil(len(alive) / (rate * len(unreached))), max_draws)
        if wanted <= done:
            break
        add(unreached, wanted - done)
    return (1 + reached) / (1 + n), n


def _reached(
    firing: Firing, n_features: int, events: Events, draws: int, generator: np.random.Generator
) -> Int[np.ndarray, "v"]:
    """How many draws of signs reach the observation, for each of some features."""
    products = _products(firing, n_features, events)
    observed = products.sum(axis=(1, 2))
    reached = np.zeros(n_features, dtype=np.int64)
    at_once = max(1, _CHUNK_NUMBERS // products[:, 0].size)
    for start in range(0, draws, at_once):
        signs = generator.choice((-1.0, 1.0), size=(min(at_once, draws - start), products.shape[1]))
        drawn = ((signs @ products) * signs).sum(axis=2)
        reached += (drawn >= observed[:, None] * (1 - _TIE)).sum(axis=1)
    return reached


def _products(firing: Firing, n_features: int, events: Events) -> Float[np.ndarray, "v G G"]:
    """``sum_p y_gp y_hp / n_p`` of any two clusters g and h."""
    text = firing.text
    P, C, G = len(text.positions), text.n_contexts, text.n_clusters
    feature = events.feature.astype(np.int64)
    cell = (feature * G + text.clusters[events.context]) * P + events.place
    y = np.bincount(cell, minlength=n_features * G * P).reshape(n_features, G, P).astype(np.float64)
    by_context = np.bincount(feature * C + events.context, minlength=n_features * C).reshape(n_features, C)
    rates, there = by_context / np.maximum(text.lengths, 1), text.there.astype(np.float64)
    for cluster in range(G):
        mine = text.clusters == cluster
        y[:, cluster] -= rates[:, mine] @ there[:, mine].T
    y /= np.sqrt(np.maximum(there.sum(axis=1), 1.0))
    return y @ y.transpose(0, 2, 1)
