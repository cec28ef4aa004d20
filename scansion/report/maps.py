"""Pictures of whole dictionaries: masks before and after training, and where features fire, one row per feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.evals.position import load_profiles
from scansion.evals.position.profiles import PROFILES, Profiles
from scansion.evals.position.states import rebuild_start, weights_at

ROWS = 192
"""Most features shown of a dictionary."""


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of one arm's first seed; all have the same features in the same rows.

    Attributes:
        arm: its name.
        positions: of the columns.
        panels: title -> rows of features, 255 at weight 1 or at the row's highest firing rate.
        note: in what order the rows are, and what is missing.
    """

    arm: str
    positions: list[int]
    panels: dict[str, UInt8[np.ndarray, "F P"]]
    note: str


def read_profiles(folder: Path) -> Profiles | None:
    """What the position evaluation left in a training run's folder; None if it was not run."""
    evals = folder / "evals"
    return load_profiles(evals) if (evals / PROFILES).is_file() else None


def maps_of(subject: LoadedSAE, store: ActivationStore, rates: Mapping[str, Float[np.ndarray, "P F"]]) -> Maps:
    """Masks and profiles of an SAE.

    Args:
        subject: the trained SAE.
        store: the activations it was measured on, for their positions.
        rates: title -> firing rates by position.
    """
    sae, places = subject.sae, store.used_positions(subject.metadata.use_position_0)
    tables: dict[str, np.ndarray] = {}
    missing = ""
    if sae.config.mask.has_weights:
        start = rebuild_start(subject, store)
        if isinstance(start, str):
            missing = f" The mask before training cannot be shown: {start}."
        else:
            tables["mask before training"] = _shown(weights_at(start.mask, places).T)
        tables["mask after training"] = _shown(weights_at(sae.mask, places).T)
    bound = np.arange(sae.d_sae) >= sae.mask.n_shared if tables else np.ones(sae.d_sae, dtype=bool)
    for title, profile in rates.items():
        tables[title] = _shown(profile.T, by_row=True)
    leading = tables.get("mask after training", next(iter(tables.values())))
    order = np.argsort(_centres(leading), kind="stable")
    order = order[bound[order] & (tables[next(iter(rates))].max(axis=1)[order] > 0 if rates else True)]
    chosen = order[np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int)] if len(order) else order
    what = "their mask" if "mask after training" in tables else "their firing"
    shared = " Features that the mask does not restrict are left out." if not bound.all() else ""
    return Maps(
        subject.name,
        places.tolist(),
        {title: table[chosen] for title, table in tables.items()},
        f"{len(chosen)} of {sae.d_sae:,} features, an even sample of all that fired, sorted by the mean position of {what}. "
        f"Darker is a higher mask weight, or a firing rate closer to the row's highest.{shared}{missing}",
    )


def rates_of(profiles: Profiles) -> dict[str, Float[np.ndarray, "P F"]]:
    """Firing rates in use and, where a mask was lifted, without it."""
    tokens = np.maximum(profiles["tokens"], 1)[:, None]
    states = {"counts.in_force": "firing", "counts.lifted": "firing, mask lifted"}
    return {title: profiles[name] / tokens for name, title in states.items() if name in profiles}


def _shown(rows: Float[np.ndarray, "F P"], by_row: bool = False) -> UInt8[np.ndarray, "F P"]:
    highest = rows.max(axis=1, keepdims=True) if by_row else np.maximum(rows.max(initial=1.0), 1.0)
    return np.round(255 * rows / np.maximum(highest, np.finfo(np.float64).tiny)).astype(np.uint8)


def _centres(rows: UInt8[np.ndarray, "F P"]) -> Float[np.ndarray, "F"]:
    weights = rows.astype(np.float64)
    return (weights * np.arange(rows.shape[1])).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)
