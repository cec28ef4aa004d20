"""Firing made up to have known figures, without an SAE behind it."""

from __future__ import annotations

import numpy as np
import torch

from scansion.activations import ActivationStore
from scansion.evals.position.firing import Firing, Profile, Text


def made_up_text(lengths: list[int], n_groups: int = 4) -> Text:
    """Contexts of these lengths, each a document, dealt out to groups and clusters in turn, with no activations behind them."""
    n = len(lengths)
    store = object.__new__(ActivationStore)
    return Text(
        store, torch.arange(1, 1 + max(lengths)), np.array(lengths), np.arange(n) % n_groups, n, np.arange(n) % 64
    )


def firing_of(text: Text, fired: np.ndarray) -> Firing:
    """What was recorded if features fired as ``fired`` [P, C, F] says, each time with activation 1."""
    fired = fired & text.there[..., None]
    counts = np.stack([fired[:, text.groups == g].sum(axis=1) for g in range(text.n_groups)], axis=1).astype(np.float32)
    return Firing(text, counts, counts.copy(), text.tokens_by_group(), np.packbits(fired, axis=1))


def profile(counts: list[list[float]], tokens: list[int], mass: list[list[float]] | None = None) -> Profile:
    """A profile of counts given feature by feature: [F][P]."""
    transposed = np.array(counts, dtype=np.float64).T
    return Profile(transposed, transposed if mass is None else np.array(mass, dtype=np.float64).T, np.array(tokens))


def runs(n_positions: int, n_contexts: int, n_features: int, rate: float, stay: float, seed: int) -> np.ndarray:
    """Firing that knows nothing of positions but comes in runs: a stationary two-state chain, [P, C, F].

    Each context has a rate of its own, scattered around ``rate``; a state lasts with probability ``stay``, else it is
    drawn again.
    """
    generator = np.random.default_rng(seed)
    own = np.clip(rate * generator.gamma(2.0, 0.5, size=(n_contexts, n_features)), 0, 0.95)
    fired = np.zeros((n_positions, n_contexts, n_features), dtype=bool)
    state = generator.random(own.shape) < own
    for position in range(n_positions):
        fired[position] = state
        drawn = generator.random(own.shape) < own
        state = np.where(generator.random(own.shape) < stay, state, drawn)
    return fired
