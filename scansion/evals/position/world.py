"""A synthetic world that is like a trained SAE: as many of its features bound to positions, by profiles of the same kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from scansion.errors import ConfigError
from scansion.evals.position.localised import FEWEST_FIRINGS, WIDEST, is_localised
from scansion.evals.position.profiles import PROFILES, Profiles, load_profiles

MOST_OF_IT = 0.8
"""Share of a feature's firing that decides the kind of its profile."""
PERIODS = range(2, 9)


def world_like(run: Path, context_length: int) -> dict[str, Any]:
    """Settings of a :class:`~scansion.synth.SynthConfig` that follow an SAE's measured profiles, with its mask lifted.

    A feature counts as bound if it is localised (:func:`~scansion.evals.position.localised.is_localised`) and has a
    profile that a world can have. If 80% of its firing is at one position, that is *single*; if the shortest stretch of
    neighbouring positions that holds 80% is at most as long as half of the positions, a *band* of that width; if every
    n-th position holds 80%, for an n from 2 to 8, *periodic*. Widths of bands go from the tenth to the ninetieth
    percentile, scaled to ``context_length``.

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
        raise ConfigError(
            f"{run} has no measured profiles; run `scansion eval {run} --held-out STORE --evaluations position`"
        )
    return world_of(load_profiles(run / "evals"), context_length)


def world_of(profiles: Profiles, context_length: int) -> dict[str, Any]:
    """:func:`world_like`, from the profiles themselves."""
    state = "lifted" if "counts.lifted" in profiles else "in_force"  # an SAE without a mask has but one
    counts = profiles[f"counts.{state}"].astype(np.float64)
    often = counts.sum(axis=0) >= FEWEST_FIRINGS
    if not often.any():
        raise ConfigError(f"no feature fired {FEWEST_FIRINGS} times on the held-out text; measure on more of it")
    n_positions = len(counts)
    localised = is_localised(counts, profiles[f"{state}.q_value"], profiles[f"{state}.effective_positions"])
    rates = counts[:, localised] / np.maximum(profiles["tokens"], 1)[:, None]
    stretch = _shortest(rates)
    single = stretch == 1
    band = ~single & (stretch <= WIDEST * n_positions)
    periodic = ~single & ~band & _periodic(rates)
    bound = single | band | periodic
    if not bound.any():
        return {"bound": 0.0}
    kinds = {"band": band, "single": single, "periodic": periodic}
    widths = np.quantile(stretch[band], (0.1, 0.9)) / n_positions * context_length if band.any() else (2, 16)
    low, high = (int(np.clip(round(float(width)), 1, context_length)) for width in widths)
    return {
        "bound": round(float(bound.sum() / often.sum()), 4),
        "mix": {name: round(float(chosen.sum() / bound.sum()), 4) for name, chosen in kinds.items()},
        "band_width": (low, high),
    }


def _shortest(rates: Float[np.ndarray, "P F"]) -> Int[np.ndarray, "F"]:
    """How many neighbouring positions it takes, at least, to hold most of a feature's firing."""
    before = np.concatenate([np.zeros((1, rates.shape[1])), rates.cumsum(axis=0)])
    found = np.full(rates.shape[1], len(rates))
    for size in range(len(rates), 0, -1):
        found[(before[size:] - before[:-size]).max(axis=0) >= MOST_OF_IT * before[-1]] = size
    return found


def _periodic(rates: Float[np.ndarray, "P F"]) -> Bool[np.ndarray, "F"]:
    """Whether every n-th position, for some n, holds most of a feature's firing."""
    found = np.zeros(rates.shape[1], dtype=bool)
    for period in PERIODS:
        for phase in range(period):
            found |= rates[phase::period].sum(axis=0) >= MOST_OF_IT * rates.sum(axis=0)
    return found
