"""Feature pages as chunks: a small table of all features, and their details in blocks that are read when one is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from torch import Tensor

from scansion.palette import COLOURS
from scansion.report.chunks import Chunks
from scansion.report.features.directions import LogitLens, Neighbours
from scansion.report.features.gathering import Examples, Features

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
        entries: dimensions of the decoder row's largest entries, and these entries.
        mask_note: what the mask is, for the heading of the profile.
        fingerprint: of the SAE.
        explanations: feature -> what a language model said of it, in the evaluation ``autointerp``.
        elsewhere: index among the pages of another SAE -> the feature there that is nearest to each; [F, 1].
    """

    arm: str
    seed: int
    features: Features
    neighbours: Neighbours
    lens: LogitLens | None
    entries: tuple[Int[np.ndarray, "F n"], Float[np.ndarray, "F n"]]
    mask_note: str
    fingerprint: str = ""
    elsewhere: Mapping[int, Neighbours] = field(default_factory=dict[int, Neighbours])
    explanations: Mapping[int, str] = field(default_factory=dict[int, str])


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
    # In the order in which a page needs them: what comes early can be used while the rest is still being read.
    chunks.add_json("features", [_about(one, index) for index, one in enumerate(pages)])
    chunks.add_json("vocabulary", [decode(int(token)) for token in vocabulary])
    words = np.searchsorted(vocabulary, text).astype(np.uint32)
    lenses = [
        None if one.lens is None else np.searchsorted(vocabulary, one.lens.tokens).astype(np.uint32) for one in pages
    ]
    peaks = [_peak_positions(one.features.examples) for one in pages]
    for index, (one, lens) in enumerate(zip(pages, lenses, strict=True)):
        chunks.add_arrays(f"table-{index}", _table(one, words, lens, peaks[index]))
        chunks.add_json(f"explanations-{index}", dict(one.explanations))
    chunks.add_json("sentences", [])  # filled in by `scansion look --page`
    chunks.add_arrays("contexts", {"tokens": words, "lengths": lengths.astype(np.uint16)})
    for index, (one, lens) in enumerate(zip(pages, lenses, strict=True)):
        for block, start in enumerate(range(0, len(one.features.density), BLOCK)):
            chunks.add_arrays(f"block-{index}-{block}", _block(one, lens, slice(start, start + BLOCK)))
        where = {"contexts": _plus_one(one.features.examples.contexts), "peaks": peaks[index].astype(np.uint16)}
        chunks.add_arrays(f"where-{index}", where)


def _about(pages: FeaturePages, index: int) -> dict[str, Any]:
    features = pages.features
    return {
        "arm": pages.arm,
        "seed": pages.seed,
        "colour": COLOURS[index % len(COLOURS)],
        "fingerprint": pages.fingerprint,
        "n_top": features.examples.n_top,
        "elsewhere": list(pages.elsewhere),
        "n": len(features.density),
        "block": BLOCK,
        "positions": features.positions.tolist(),
        "mask": features.mask is not None,
        "mask_note": pages.mask_note,
    }


def _table(
    pages: FeaturePages,
    words: UInt32[np.ndarray, "C L"],
    lens: UInt32[np.ndarray, "F 2 n"] | None,
    peaks: Int[np.ndarray, "F K"],
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
        "sink": features.sink_share.astype(np.float32),
        "strip": _strip(features),
        "peaks": _peak_tokens(features.examples, words, peaks),
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


def _peak_positions(examples: Examples) -> Int[np.ndarray, "F K"]:
    """The position at which each feature is most active in each of its contexts; 0 where there is no context."""
    sizes = np.diff(examples.offsets)
    slot = np.repeat(np.arange(len(sizes)), sizes)
    strongest_first = np.lexsort((-examples.acts, slot))
    peaks = np.zeros(len(sizes), dtype=np.int64)
    peaks[sizes > 0] = examples.positions[strongest_first[examples.offsets[:-1][sizes > 0]]]
    return peaks.reshape(examples.contexts.shape)


def _peak_tokens(
    examples: Examples, words: UInt32[np.ndarray, "C L"], peaks: Int[np.ndarray, "F K"]
) -> UInt32[np.ndarray, "F n"]:
    """The token each feature is most active on in each of its first contexts; all ones where there is none."""
    first = slice(None, min(_PEAKS, examples.n_top))
    contexts = examples.contexts[:, first]
    tokens = words[contexts, peaks[:, first]] if words.size else np.zeros(contexts.shape, dtype=np.uint32)
    return np.where(contexts >= 0, tokens, np.iinfo(np.uint32).max).astype(np.uint32)


def _plus_one(indices: Int[np.ndarray, "..."]) -> UInt32[np.ndarray, "..."]:
    """One more than each index, so that 0 is none."""
    return (indices + 1).astype(np.uint32)


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
        "contexts": _plus_one(examples.contexts[rows]),
        "offsets": (offsets - offsets[0]).astype(np.uint32),
        "positions": examples.positions[entries].astype(np.uint16),
        # Never 0, for it did fire.
        "acts": np.clip(np.ceil(255 * share), 1, 255).astype(np.uint8),
        "neighbours": pages.neighbours.features[rows].astype(np.uint32),
        "cosines": pages.neighbours.cosines[rows].astype(np.float32),
        "partners": _plus_one(features.partners.features[rows]),
        "shares": features.partners.cosines[rows].astype(np.float32),
        "histogram": features.histogram[rows].astype(np.uint32),
        "dimensions": pages.entries[0][rows].astype(np.uint32),
        "entries": pages.entries[1][rows].astype(np.float32),
    }
    if pages.elsewhere:
        found |= {
            "elsewhere": np.hstack([one.features[rows] for one in pages.elsewhere.values()]).astype(np.uint32),
            "elsewhere_cosines": np.hstack([one.cosines[rows] for one in pages.elsewhere.values()]).astype(np.float32),
        }
    if features.mask is not None:
        mask = features.mask[:, rows].T
        found |= {"mask": _as_bytes(mask), "highest_mask": mask.max(axis=1).astype(np.float32)}
    if pages.lens is not None and lens is not None:
        found |= {"lens": lens[rows], "logits": pages.lens.logits[rows].astype(np.float32)}
        found["lens_histogram"] = pages.lens.histogram[rows].astype(np.uint32)
    return found


def _as_bytes(rows: Float[np.ndarray, "F n"]) -> np.ndarray:
    """Each row in 256 steps from 0 to its highest."""
    highest = np.maximum(rows.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.round(255 * rows / highest).astype(np.uint8)
