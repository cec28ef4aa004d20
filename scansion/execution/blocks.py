"""Blocks: part of a batch's tokens with the features they may use. Every way of execution cuts a batch into blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from scansion.masks import Bands, PositionalMask
from scansion.readings import Reading, on_cpu

# The positions of a stream, and the features of a band, are the same at every step.
_listed: Reading[list[int]] = Reading(lambda positions: positions.tolist())
_features_on_cpu: Reading[Tensor] = Reading(on_cpu)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a batch with the features that their tokens may use: those of one band, or all if the mask has no bands.

    Attributes:
        rows: of the batch's position axis; may be empty where a batch has no token of a band.
        pieces: the w features, as ascending ranges of the rows of W_dec: the shared ones, if there are any, then the
            band's own.
        features: their indices; None for all, in order.
        closed: True where the mask keeps a feature from firing; None if it keeps none in this block.
        weights: of the mask, with their gradient, if it has any: pre-activations are multiplied by them. If ``closed`` is
            given too, they are not, and the weights learn straight through. None for a mask that only blocks features.
        bias: index of the decoder bias of its tokens.
    """

    rows: slice
    pieces: tuple[slice, ...]
    features: Int[Tensor, "w"] | None = None
    closed: Bool[Tensor, "p w"] | None = None
    bias: int = 0
    weights: Float[Tensor, "p w"] | None = None

    @property
    def width(self) -> int:
        """Features that a token may use, w."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def n_rows(self) -> int:
        """Positions, p."""
        return self.rows.stop - self.rows.start

    def columns(self) -> Iterator[tuple[slice, slice]]:
        """Each piece with the columns that it takes in a matrix of width w."""
        start = 0
        for piece in self.pieces:
            yield piece, slice(start, start + piece.stop - piece.start)
            start += piece.stop - piece.start

    def at(self, rows: slice) -> Block:
        """The part of the block at these rows of the batch, which must be among the block's rows."""
        own = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        closed = None if self.closed is None else self.closed[own]
        weights = None if self.weights is None else self.weights[own]
        return replace(self, rows=rows, closed=closed, weights=weights)

    def split(self, n_rows: int) -> Iterator[Block]:
        """The block in parts of ``n_rows`` rows; the last may have fewer."""
        for first in range(self.rows.start, self.rows.stop, n_rows):
            yield self.at(slice(first, min(first + n_rows, self.rows.stop)))

    def of_features(self, values: Shaped[Tensor, "d_sae *rest"]) -> Shaped[Tensor, "w *rest"]:
        """Per-feature values, for this block's features."""
        return values if self.features is None else values[self.features]

    def columns_of(self, chosen: Bool[Tensor, "d_sae"]) -> Int[Tensor, "s"]:
        """The columns of the chosen features, both on the CPU."""
        return (chosen if self.features is None else chosen[_features_on_cpu(self.features)]).nonzero().squeeze(1)

    def named(self, columns: Int[Tensor, "s"]) -> Int[Tensor, "s"]:
        """Indices of the features in these columns of the block."""
        return columns if self.features is None else self.features[columns]


def whole_block(n_rows: int, d_sae: int) -> Block:
    """All rows of a batch with all features."""
    return Block(slice(0, n_rows), (slice(0, d_sae),))


def blocks_of(mask: PositionalMask, positions: Int[Tensor, "P"]) -> list[Block]:
    """Cut a batch into blocks: one per band; if the mask has no bands, one per decoder bias.

    Args:
        mask: it does not gate gradients, and where it has weights, there is one decoder bias.
        positions: ascending, of the rows of the batch.
    """
    bands = mask.gate.bands
    if bands is not None:
        return _blocks_of_bands(bands, positions, mask.n_decoder_biases > 1)
    whole = whole_block(len(positions), mask.d_sae)
    if mask.gate.kind in ("weights", "straight_through"):
        whole = replace(whole, weights=mask(positions))
    if mask.gate.forward and mask.gate.kind != "weights":
        whole = replace(whole, closed=~mask.can_fire(positions))
    if mask.n_decoder_biases == 1:
        return [whole]
    biases, counts = torch.unique_consecutive(mask.band_at(positions), return_counts=True)
    blocks: list[Block] = []
    first = 0
    for bias, count in zip(biases.tolist(), counts.tolist(), strict=True):
        blocks.append(replace(whole.at(slice(first, first + count)), bias=bias))
        first += count
    return blocks


def _blocks_of_bands(bands: Bands, positions: Tensor, own_bias: bool) -> list[Block]:
    cuts = [bisect_left(_listed(positions), edge) for edge in bands.edges]
    common = (slice(0, bands.shared),) if bands.shared else ()
    blocks: list[Block] = []
    start = bands.shared
    for index, size in enumerate(bands.sizes):
        pieces = (*common, slice(start, start + size))
        features = _named(tuple((piece.start, piece.stop) for piece in pieces), positions.device)
        blocks.append(Block(slice(cuts[index], cuts[index + 1]), pieces, features, None, index if own_bias else 0))
        start += size
    return blocks


@lru_cache(maxsize=256)
def _named(ranges: tuple[tuple[int, int], ...], device: torch.device) -> Int[Tensor, "w"]:
    """Indices of the features in these ranges; cached because they are the same at every step."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in ranges])
