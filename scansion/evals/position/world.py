"""A synthetic world that is like a trained SAE: as many of its features bound to positions, by profiles of the same kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from scansion.errors import ConfigError
from scansion.evals.position.profiles import PROFILES, Profiles, load_profiles

FEWEST_FIRINGS = 50
"""Features that fired less often say too little about the width of their profile."""
MOST_SIGNIFICANT = 0.05
"""A bound feature depends on position at this false discovery rate, and"""
WIDEST = 0.5
"""its firing is as concentrated as if it were spread evenly over at most this share of the positions."""
_SINGLE = 1.5
_CONTIGUOUS = 0.75


def world_like(run: Path, context_length: int) -> dict[str, Any]:
    """Settings of a :class:`~scansion.synth.SynthConfig` that follow an SAE's measured profiles, with its mask lifted.

    A feature counts as bound if it depends on position and is concentrated on at most half of the positions, by its
    effective number of positions. If that is below 1.5 its profile is *single*; if a stretch of neighbouring positions as
    long as that number, and a quarter longer, has three quarters of its firing, it is a *band*; else it is *periodic*.
    Widths of bands go from the tenth to the ninetieth percentile, scaled to ``context_length``.

    Args:
        run: an SAE's folder with the result of ``position``.
        context_length: positions of the synthetic contexts.

    Returns:
        ``bound``, and if it is not 0 ``mix`` and ``band_width``.

    Raises:
        ConfigError: position was not measured there, or no feature fired often enough.
        DamagedError: the file of profiles is damaged.

    Example:
        >>> world_like(Path("runs/positional_masking/run_0/seed_0"), context_length=32)
    """
    if not (run / "evals" / PROFILES).is_file():
        raise ConfigError(f"{run} has no measured profiles; run `scansion eval {run} --evaluations position`")
    return world_of(load_profiles(run / "evals"), context_length)


def world_of(profiles: Profiles, context_length: int) -> dict[str, Any]:
    """:func:`world_like`, from the profiles themselves."""
    counts = profiles["counts.free"].astype(np.float64)
    often = counts.sum(axis=0) >= FEWEST_FIRINGS
    if not often.any():
        raise ConfigError(f"no feature fired {FEWEST_FIRINGS} times on the held-out text; measure on more of it")
    n_positions = len(counts)
    effective = profiles["free.effective_positions"]
    bound = often & (profiles["free.q_value"] <= MOST_SIGNIFICANT) & (effective <= WIDEST * n_positions)
    if not bound.any():
        return {"bound": 0.0}
    rates = counts[:, bound] / np.maximum(profiles["tokens"], 1)[:, None]
    single = effective[bound] < _SINGLE
    band = ~single & _contiguous(rates, effective[bound])
    widths = np.quantile(effective[bound][band], (0.1, 0.9)) / n_positions * context_length if band.any() else (2, 16)
    low, high = (int(np.clip(round(float(width)), 1, context_length)) for width in widths)
    return {
        "bound": round(float(bound.sum() / often.sum()), 4),
        "mix": {
            "band": round(float(band.mean()), 4),
            "single": round(float(single.mean()), 4),
            "periodic": round(float((~single & ~band).mean()), 4),
        },
        "band_width": (low, high),
    }


def _contiguous(rates: Float[np.ndarray, "P F"], effective: Float[np.ndarray, "F"]) -> Bool[np.ndarray, "F"]:
    """Whether most of a profile lies in one stretch about as long as its effective number of positions."""
    before = np.concatenate([np.zeros((1, rates.shape[1])), rates.cumsum(axis=0)])
    width = np.minimum(np.ceil(1.25 * effective), len(rates)).astype(int)
    found = [
        (total[size:] - total[:-size]).max() >= _CONTIGUOUS * total[-1]
        for total, size in zip(before.T, width, strict=True)
    ]
    return np.array(found, dtype=bool)
