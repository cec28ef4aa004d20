"""How well firing agrees with a mask, and profiles with one another: closed forms on counts, one number a feature."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scansion.evals.position.firing import Profile


def auroc(weights: Float[np.ndarray, "P F"], profile: Profile) -> Float[np.ndarray, "F"]:
    """Area under the ROC curve of the mask's weight as a predictor of firing, over tokens; equal weights count half.

    In [0, 1]; one half where the weight says nothing. For a hard mask that allows a share m of the tokens, a feature
    that never fires elsewhere reaches no more than about ``1 - m / 2``, for it does not fire on all it is allowed.
    NaN for a feature that fires on no token or on all.
    """
    order = np.argsort(weights, axis=0, kind="stable")
    sorted_weights = np.take_along_axis(weights, order, axis=0)
    fired = np.take_along_axis(profile.counts, order, axis=0)
    silent = profile.tokens[order] - fired
    below = np.cumsum(silent, axis=0) - silent
    # Tokens of equal weight stand in a row: each firing beats the silent ones before the row and half of those in it.
    new = np.ones(weights.shape, dtype=bool)
    new[1:] = sorted_weights[1:] != sorted_weights[:-1]
    before = np.maximum.accumulate(np.where(new, below, 0.0), axis=0)
    last = np.ones(weights.shape, dtype=bool)
    last[:-1] = new[1:]
    through = np.minimum.accumulate(np.where(last, below + silent, np.inf)[::-1], axis=0)[::-1]
    beaten = (fired * (before + through) / 2).sum(axis=0)
    pairs = fired.sum(axis=0) * silent.sum(axis=0)
    return np.where(pairs > 0, beaten / np.maximum(pairs, 1), np.nan)


def overlap(weights: Float[np.ndarray, "P F"], profile: Profile) -> Float[np.ndarray, "F"]:
    """``1 - TV(mask, profile)``, both normalised over positions: 1 if they are equal, 0 if they share no position.

    TV is the total variation distance, half the sum of absolute differences. NaN for a feature that never fired, or whose mask
    is closed at all positions used.
    """
    return np.minimum(_normalised(weights), _normalised(profile.rates)).sum(axis=0)


def inside(weights: Float[np.ndarray, "P F"], amounts: Float[np.ndarray, "P F"]) -> Float[np.ndarray, "F"]:
    """The share of ``amounts`` that lies inside the mask, each position counted by its weight over the largest."""
    highest = np.maximum(weights.max(axis=0), np.finfo(np.float64).tiny)
    total = amounts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (weights / highest * amounts).sum(axis=0) / total, np.nan)


def retention(weights: Float[np.ndarray, "P F"], profile: Profile) -> Float[np.ndarray, "F"]:
    """``(a - c) / (1 - c)``: a is the share of activation mass inside the mask, c that of tokens, which is chance.

    1 if all mass is inside, 0 for a feature to which the mask means nothing, down to ``-c / (1 - c)`` if it avoids it.
    NaN for a feature that never fired, or whose mask is open, or closed, at all positions used.
    """
    a = inside(weights, profile.mass)
    c = inside(weights, np.broadcast_to(profile.tokens[:, None].astype(np.float64), weights.shape))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((c > 0) & (c < 1 - 1e-9), (a - c) / (1 - c), np.nan)


def mass_weighted_retention(weights: Float[np.ndarray, "P F"], profile: Profile) -> float:
    """Mean of :func:`retention` over features, weighted by their activation mass; NaN where it is known of none."""
    kept, mass = retention(weights, profile), profile.mass.sum(axis=0)
    known = np.isfinite(kept)
    total = mass[known].sum()
    return float((kept * mass)[known].sum() / total) if total > 0 else float("nan")


def reliability(one: Profile, other: Profile) -> Float[np.ndarray, "F"]:
    """Pearson correlation over positions of the rate profiles of two halves; NaN where one is flat."""
    a, b = (half.rates - half.rates.mean(axis=0) for half in (one, other))
    spread = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return np.where(spread > 1e-12, (a * b).sum(axis=0) / np.maximum(spread, 1e-12), np.nan)


def divergence(one: Float[np.ndarray, "P F"], other: Float[np.ndarray, "P F"]) -> Float[np.ndarray, "F"]:
    """Jensen-Shannon divergence of two profiles in bits, in [0, 1]; NaN if one is 0. Its square root is a distance."""
    p, q = _normalised(one), _normalised(other)
    m = (p + q) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = [np.where(x > 0, x * np.log2(x / m), x * 0) for x in (p, q)]
    return np.clip((terms[0] + terms[1]).sum(axis=0) / 2, 0.0, 1.0)


def phi(both: np.ndarray, first: np.ndarray, second: np.ndarray, n: float) -> np.ndarray:
    """Correlation of two truth values over n tokens from how often both, the first and the second hold; NaN if constant."""
    spread = np.sqrt(first * (n - first) * second * (n - second))
    return np.where(spread > 0, (n * both - first * second) / np.maximum(spread, 1e-12), np.nan)


def _normalised(values: Float[np.ndarray, "P F"]) -> Float[np.ndarray, "P F"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return values / values.sum(axis=0)
