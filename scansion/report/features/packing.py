"""Feature pages as chunks: a small table of all features, and their details in blocks that are read when one is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from torch import Tensor

from scansion.report.chunks import Chunks
from scansion.report.features.directions import LogitLens, Neighbours
from scansion.report.features.gathering import Features

BLOCK = 512
"""Features whose details share a chunk."""
STRIP = 32
"""Cells of the small picture of a profile in the table."""
_PEAKS = 3

Decode = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class FeaturePages:
    """What the pages say of one SAE.

    Attributes:
        arm: the run's name.
        seed: which of its seeds this is.
        features, neighbours: see there.
        lens: None if there is no logit lens.
        mask_note: what the mask is, for the heading of the profile.
    """

    arm: str
    seed: int
    features: Features
    neighbours: Neighbours
    lens: LogitLens | None
    mask_note: str


def pack_features(
    pages: Sequence[FeaturePages],
    tokens: Int[Tensor, "L C"],
    valid: Bool[Tensor, "L C"],
    decode: Decode,
    chunks: Chunks,
) -> None:
    """Add everything to a page: the text once, then each SAE's table and blocks, then an index of it all.

    Args:
        pages: SAEs measured on one store.
        tokens, valid: the store's.
        decode: text of a token id.
        chunks: the page's.
    """
    read = max((int(one.features.examples.contexts.max()) for one in pages), default=-1) + 1
    text = tokens[:, :read].T.numpy().astype(np.int64)
    lengths = valid[:, :read].sum(dim=0).numpy()
    used = [np.unique(text), *(np.unique(one.lens.tokens) for one in pages if one.lens)]
    vocabulary = np.unique(np.concatenate(used))
    chunks.add_json("vocabulary", [decode(int(token)) for token in vocabulary])
    words = np.searchsorted(vocabulary, text).astype(np.uint32)
    chunks.add_arrays("contexts", {"tokens": words, "lengths": lengths.astype(np.uint16)})
    for index, one in enumerate(pages):
        lens = None if one.lens is None else np.searchsorted(vocabulary, one.lens.tokens).astype(np.uint32)
        chunks.add_arrays(f"table-{index}", _table(one, words, lens))
        for block, start in enumerate(range(0, len(one.features.density), BLOCK)):
            chunks.add_arrays(f"block-{index}-{block}", _block(one, lens, slice(start, start + BLOCK)))
    chunks.add_json("features", [_about(one) for one in pages])


def _about(pages: FeaturePages) -> dict[str, Any]:
    features = pages.features
    return {
        "arm": pages.arm,
        "seed": pages.seed,
        "n": len(features.density),
        "block": BLOCK,
        "positions": features.positions.tolist(),
        "mask": features.mask is not None,
        "mask_note": pages.mask_note,
    }


def _table(
    pages: FeaturePages, words: UInt32[np.ndarray, "C L"], lens: UInt32[np.ndarray, "F 2 n"] | None
) -> dict[str, np.ndarray]:
    features = pages.features
    rates = features.profile.rates
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (rates * features.positions[:, None]).sum(axis=0) / rates.sum(axis=0)
    found = {
        "specialisation": features.specialisation.astype(np.float32),
        "fidelity": features.fidelity.astype(np.float32),
        "density": features.density.astype(np.float32),
        "max_act": features.max_act.astype(np.float32),
        "centre": centre.astype(np.float32),
        "strip": _strip(features),
        "peaks": _peak_tokens(features, words),
    }
    if lens is not None:
        found["lens"] = np.ascontiguousarray(lens[:, 0, :_PEAKS])
    return found


def _strip(features: Features) -> np.ndarray:
    """Each profile in a few cells of successive positions, [F, cells], 255 at its highest."""
    profile, P = features.profile, len(features.positions)
    edges = np.linspace(0, P, min(STRIP, P) + 1).astype(int)[:-1]
    counts = np.add.reduceat(profile.counts, edges, axis=0)
    tokens = np.add.reduceat(profile.tokens, edges)
    return _as_bytes((counts / np.maximum(tokens, 1)[:, None]).T)


def _peak_tokens(features: Features, words: UInt32[np.ndarray, "C L"]) -> np.ndarray:
    """The token each feature is most active on in each of its first contexts, [F, n]; all ones where there is none."""
    examples = features.examples
    F, K = examples.contexts.shape
    n = min(_PEAKS, K)
    peaks = np.full((F, n), np.iinfo(np.uint32).max, dtype=np.uint32)
    for f in range(F):
        for k in range(n):
            begin, end = examples.offsets[f * K + k], examples.offsets[f * K + k + 1]
            if end > begin:
                position = examples.positions[begin + int(examples.acts[begin:end].argmax())]
                peaks[f, k] = words[examples.contexts[f, k], position]
    return peaks


def _block(pages: FeaturePages, lens: UInt32[np.ndarray, "F 2 n"] | None, rows: slice) -> dict[str, np.ndarray]:
    features, examples = pages.features, pages.features.examples
    K, F = examples.contexts.shape[1], len(features.density)
    start, stop = rows.start, min(rows.stop, F)
    offsets = examples.offsets[start * K : stop * K + 1]
    entries = slice(offsets[0], offsets[-1])
    owner = np.repeat(np.arange(start * K, stop * K) // K, np.diff(offsets))
    share = examples.acts[entries] / np.maximum(features.max_act[owner], 1e-30)
    rates = features.profile.rates[:, rows].T
    found = {
        "rates": _as_bytes(rates),
        "highest_rate": rates.max(axis=1).astype(np.float32),
        # One more than the index, so that 0 is none.
        "contexts": (examples.contexts[rows] + 1).astype(np.uint32),
        "offsets": (offsets - offsets[0]).astype(np.uint32),
        "positions": examples.positions[entries].astype(np.uint16),
        # Never 0, for it did fire.
        "acts": np.clip(np.ceil(255 * share), 1, 255).astype(np.uint8),
        "neighbours": pages.neighbours.features[rows].astype(np.uint32),
        "cosines": pages.neighbours.cosines[rows].astype(np.float32),
    }
    if features.mask is not None:
        mask = features.mask[:, rows].T
        found |= {"mask": _as_bytes(mask), "highest_mask": mask.max(axis=1).astype(np.float32)}
    if pages.lens is not None and lens is not None:
        found |= {"lens": lens[rows], "logits": pages.lens.logits[rows].astype(np.float32)}
    return found


def _as_bytes(rows: Float[np.ndarray, "F n"]) -> np.ndarray:
    """Each row in 256 steps from 0 to its highest."""
    highest = np.maximum(rows.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.round(255 * rows / highest).astype(np.uint8)
