"""Localised features: those that fire at few positions, how many there are, and whether they peak where their mask is open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Real
from pydantic import BaseModel, ConfigDict

from scansion.evals.statistics import finite

FEWEST_FIRINGS = 50
"""Features that fired less often say too little about the width of their profile."""
MOST_SIGNIFICANT = 0.05
"""A localised feature depends on position at this false discovery rate, and"""
WIDEST = 0.5
"""its firing is as concentrated as if it were spread evenly over at most this share of the positions."""


class Localised(BaseModel):
    """Localised features of one state.

    Attributes:
        n_frequent: features that fired at least :data:`FEWEST_FIRINGS` times. Only these are judged.
        n: of them, localised features: significant at a false discovery rate of 5%, and ``effective_positions`` at most half
            of the positions.
        n_bound: of the localised ones, features whose mask is open at some positions and closed at others.
        own_share: of those, the share whose highest firing rate is at an open position; None if there are none.
        own_share_chance: the same share if masks were permuted over all features that have such a mask, localised or not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_frequent: int
    n: int
    n_bound: int
    own_share: float | None
    own_share_chance: float | None


def is_localised(
    counts: Real[np.ndarray, "P F"], q_value: Float[np.ndarray, "F"], effective_positions: Float[np.ndarray, "F"]
) -> Bool[np.ndarray, "F"]:
    """Features that fired often, depend on position, and are concentrated on at most half of the P positions.

    Args:
        counts: how often each feature fired at each position.
        q_value: false discovery rate at which each is found to depend on position.
        effective_positions: over how many positions each fires, in [1, P].
    """
    frequent = counts.sum(axis=0) >= FEWEST_FIRINGS
    return frequent & (q_value <= MOST_SIGNIFICANT) & (effective_positions <= WIDEST * len(counts))


def localised_features(profiles: Mapping[str, np.ndarray], state: str) -> Localised:
    """Count the localised features of one state, and those that peak where their mask is open.

    Features that a mask weights, without closing any position to them, are not bound in this sense.

    Args:
        profiles: of :func:`~scansion.evals.position.load_profiles`.
        state: ``in_force``, or ``lifted`` if the mask acts in the forward pass.

    Example:
        >>> localised_features(load_profiles(Path("runs/positional_masking_gpt2_0/run_1/seed_0/evals")), "lifted").n
    """
    counts, tokens, weights = profiles[f"counts.{state}"], profiles["tokens"], profiles["mask"]
    localised = is_localised(counts, profiles[f"{state}.q_value"], profiles[f"{state}.effective_positions"])
    is_open = weights > 0
    bound = is_open.any(axis=0) & ~is_open.all(axis=0)
    chosen = np.flatnonzero(localised & bound)
    peaks = (counts[:, chosen] / np.maximum(tokens, 1)[:, None]).argmax(axis=0)
    return Localised(
        n_frequent=int((counts.sum(axis=0) >= FEWEST_FIRINGS).sum()),
        n=int(localised.sum()),
        n_bound=len(chosen),
        own_share=finite(is_open[peaks, chosen].mean()) if len(chosen) else None,
        own_share_chance=finite(is_open[peaks][:, bound].mean()) if len(chosen) else None,
    )
