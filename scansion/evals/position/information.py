"""Mutual information of a feature's firing and the position, and its null: the same if position did not matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

from scansion.evals.position.firing import Events, Firing, Profile
from scansion.evals.position.flips import flip_p_values

# Voita et al. 2023, "Neurons in Large Language Models: Dead, N-gram, Positional", call a neuron positional above this.
VOITA_THRESHOLD = 0.05


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.where(x > 0, x, 1.0))


def information(profile: Profile) -> Float[np.ndarray, "F"]:
    """Mutual information in bits between a feature's firing and the position, from counts (the plug-in estimate).

    ``I(1[a > 0]; p) = H(1[a > 0]) - H(1[a > 0] | p)``, in [0, entropy of firing], of which it is 0 for a feature that
    fires alike everywhere. From finite text it is biased upward, the more the rarer the feature: see :func:`shift_means`.
    """
    tokens = profile.tokens[:, None].astype(np.float64)
    split = (_x_log_x(profile.counts) + _x_log_x(tokens - profile.counts) - _x_log_x(tokens)).sum(axis=0)
    return np.maximum(split / tokens.sum() + firing_entropy(profile), 0.0)


def firing_entropy(profile: Profile) -> Float[np.ndarray, "F"]:
    """Entropy of whether a feature fires, bits in [0, 1]: the upper bound of its information on the position."""
    share = profile.counts.sum(axis=0) / profile.tokens.sum()
    return -_x_log_x(share) - _x_log_x(1 - share)


def effective_positions(
    profile: Float[np.ndarray, "P F"], tokens: Int[np.ndarray, "P"] | None = None
) -> Float[np.ndarray, "F"]:
    """Over how many positions a profile r spreads: ``(sum r)^2 / sum r^2``, 1 for a single position, P for a flat profile.

    The inverse of Simpson's index (Simpson 1949, "Measurement of diversity"; Hill's number of order 2). NaN for an empty
    profile.

    Args:
        profile: weights of a mask; or, with ``tokens``, how often a feature fired at each position.
        tokens: tokens at each position. Rates are then ``r = c / t``, and each square is estimated without bias as
            ``c (c - 1) / (t (t - 1))``: the plain square would make every rare feature look tied to positions. NaN below
            two firings; infinite where no two firings are at one position.
    """
    if tokens is None:
        rates, squares, least = profile, np.square(profile), 0.0
    else:
        t = np.maximum(tokens, 1)[:, None].astype(np.float64)
        rates, least = profile / t, 1.0
        # One token says nothing about a square; there the plain one is taken.
        squares = np.where(t > 1, rates * np.maximum(profile - 1, 0) / np.maximum(t - 1, 1), np.square(rates))
    together = squares.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (np.square(rates.sum(axis=0)) - np.square(rates).sum(axis=0) + together) / together
    return np.where(profile.sum(axis=0) > least, spread, np.nan)


def bounded_effective_positions(profile: Profile) -> Float[np.ndarray, "F"]:
    """:func:`effective_positions` of what fired, at most P: a few firings at different positions are taken to be flat."""
    return np.minimum(effective_positions(profile.counts, profile.tokens), len(profile.tokens))


@dataclass(frozen=True, eq=False)
class Null:
    """What each feature's figures would be if its firing did not depend on the position.

    Attributes:
        information: mean over draws, bits; 0 for a feature that never fired.
        effective_positions: mean over the first draws, each at most P.
        p_value: that firing does not depend on the position, see :func:`flip_p_values`; 1 for a feature that never fired.
        draws: signs drawn for it.
    """

    information: Float[np.ndarray, "F"]
    effective_positions: Float[np.ndarray, "F"]
    p_value: Float[np.ndarray, "F"]
    draws: Int[np.ndarray, "F"]

    @classmethod
    def of(
        cls,
        firing: Firing,
        n_draws: int,
        generator: np.random.Generator,
        *,
        rate: float | None = None,
        max_draws: int = 0,
    ) -> Null:
        """Means from shifts, p-values from signs; arguments as in :func:`flip_p_values`."""
        information, effective = shift_means(firing, n_draws, generator)
        p_value, draws = flip_p_values(firing, n_draws, generator, rate=rate, max_draws=max_draws)
        return cls(information, effective, p_value, draws)

    def q_value(self) -> Float[np.ndarray, "F"]:
        """The false discovery rate at which each feature is found (Benjamini and Hochberg 1995); 1 if it never fired."""
        alive = self.draws > 0
        q = np.ones(len(alive))
        if alive.any():
            q[alive] = false_discovery_control(self.p_value[alive], method="bh")
        return q


def shift_means(
    firing: Firing, n_draws: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F"]]:
    """Mean information and effective positions of firing that is moved: each context is turned by an amount of its own, as
    a ring of its valid tokens.

    Turning keeps a context's runs of firing and how often it fires, and which contexts reach which position; it leaves the
    mean information of firing that knows no position as it is. It is no test: it breaks the runs at a context's start, and
    runs as long as contexts have a heavier tail without it. Tokens shuffled one by one would lose the runs altogether.
    """
    whole = firing.without(None)
    alive = np.flatnonzero(whole.counts.sum(axis=0) > 0)
    drawn = _Draws(firing, whole)
    for chosen, events in firing.events(alive):
        drawn.add(alive[chosen], events, n_draws, generator)
    return drawn.sums / n_draws, drawn.effective


class _Draws:
    """Running sums over draws of the null."""

    _N_EFFECTIVE = 10

    def __init__(self, firing: Firing, whole: Profile) -> None:
        self._firing, self._tokens = firing, whole.tokens
        self._entropy = firing_entropy(whole)
        # A turned context has as many tokens at each position as before, so that only the counts change, and each
        # position's share of the sum can be looked up by its count.
        counts = np.arange(int(whole.tokens.max()) + 1, dtype=np.float64)
        tokens = whole.tokens[:, None].astype(np.float64)
        left = np.maximum(tokens - counts, 0.0)
        self._table = ((_x_log_x(counts) + _x_log_x(left) - _x_log_x(tokens)) / whole.tokens.sum()).ravel()
        self._row = np.arange(len(tokens), dtype=np.int64) * len(counts)
        self.sums = np.zeros(firing.d_sae)
        self.effective = np.full(firing.d_sae, np.nan)

    def add(self, features: Int[np.ndarray, "v"], events: Events, n_draws: int, generator: np.random.Generator) -> None:
        text = self._firing.text
        lengths, P = np.maximum(text.lengths, 1), len(self._tokens)
        cell = events.feature.astype(np.int64) * P
        token = events.context.astype(np.int64) * P + events.place
        # Each context's tokens are numbered from 0, and turned by number; numbers and places differ where tokens are left out.
        numbers, place_of = np.arange(P), None
        if text.counted is not None:
            numbers = np.maximum(text.there.cumsum(axis=0).T - 1, 0)
            place_of = np.argsort(~text.there.T, axis=1, kind="stable")
        moved = np.empty_like(cell)
        effective = np.zeros(len(features))
        n_effective = min(self._N_EFFECTIVE, n_draws)
        for draw in range(n_draws):
            # New place of each token of each context; places beyond a context's end are never looked up.
            turned = (numbers + generator.integers(0, lengths)[:, None]) % lengths[:, None]
            if place_of is not None:
                turned = np.take_along_axis(place_of, turned, axis=1)
            np.take(turned.ravel(), token, out=moved)
            moved += cell
            counts = np.bincount(moved, minlength=len(features) * P).reshape(-1, P)
            bits = np.take(self._table, self._row + counts).sum(axis=1) + self._entropy[features]
            self.sums[features] += np.maximum(bits, 0.0)
            if draw < n_effective:
                turned_profile = counts.T.astype(np.float64)
                effective += bounded_effective_positions(Profile(turned_profile, turned_profile, self._tokens))
        self.effective[features] = effective / n_effective


def corrected(
    firing: Firing, null: Null, alive: Bool[np.ndarray, "F"], group: int | None
) -> Float[np.ndarray, "F_alive"]:
    """Information less the null's mean, of the features that fired. Without a group of documents, the null's mean, which
    shrinks as text grows, is larger by as many times as there are fewer tokens.
    """
    profile = firing.without(group)
    more = firing.tokens.sum() / profile.tokens.sum()
    return information(profile)[alive] - more * null.information[alive]
