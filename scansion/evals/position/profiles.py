"""The profiles behind the figures, as a file: where each feature fires and what it may do there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from scansion.evals.position.firing import Firing, Text
from scansion.evals.position.measure import Measured
from scansion.evals.position.replacement import ShiftEffect
from scansion.files import atomic_file
from scansion.records import read_object
from scansion.tensor_file import load_tensors, save_tensors

PROFILES = "position_profile.safetensors"
"""Name of the file in a run's ``evals`` folder."""

Profiles = dict[str, np.ndarray]
"""Arrays by name. ``positions``, ``tokens``: [P]. ``mask``, and for each state but permuted ``counts.STATE``,
``mass.STATE``: [P, d_sae]. ``STATE.FIGURE``: [d_sae], NaN where a feature never fired or no mask binds it."""


def profiles_of(
    text: Text,
    weights: Float[np.ndarray, "P F"],
    firings: dict[str, Firing],
    measured: dict[str, Measured],
    seen: dict[str, ShiftEffect],
) -> Profiles:
    """Everything that can be drawn of one SAE."""
    arrays: Profiles = {
        "positions": text.positions.numpy().astype(np.int32),
        "tokens": text.tokens_by_group().sum(axis=1).astype(np.int32),
        "mask": _as_float16(weights),
    }
    for name, firing in firings.items():
        whole = firing.without(None)
        arrays[f"counts.{name}"] = whole.counts.astype(np.int32)
        arrays[f"mass.{name}"] = whole.mass.astype(np.float32)
    for name, one in measured.items():
        arrays |= {f"{name}.{figure}": values.astype(np.float32) for figure, values in one.by_feature.items()}
    for name, one in seen.items():
        parts = {"votes": one.votes, "vote_score": one.score, "agreement": one.agreement}
        arrays |= {f"{name}.{figure}": values.astype(np.float32) for figure, values in parts.items()}
    return arrays


def _as_float16(weights: Float[np.ndarray, "P F"]) -> Float[np.ndarray, "P F"]:
    """Rounded, but above 0 where a weight is: a weight of 0 closes a position, and a small one does not."""
    least = np.finfo(np.float16).smallest_subnormal
    return np.where(weights > 0, np.maximum(weights.astype(np.float16), least), np.float16(0))


def save_profiles(profiles: Profiles, folder: Path, sae: str) -> None:
    """Write them to ``folder``, atomically. ``sae`` is the fingerprint of the SAE they are of."""
    with atomic_file(folder / PROFILES) as temporary:
        save_tensors(
            temporary, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in profiles.items()}, sae
        )


def load_profiles(folder: Path) -> Profiles:
    """Read what :func:`save_profiles` wrote.

    Raises:
        DamagedError: the file is missing or damaged, or is of another SAE than the results beside it.
    """
    result = folder / "position.json"
    sae = read_object(result).get("sae_fingerprint") if result.is_file() else None
    return {name: tensor.numpy() for name, tensor in load_tensors(folder / PROFILES, of=sae).items()}
