"""A training forward pass from the active entries alone, for SAEs whose mask and activation function allow it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.execution import Encoder, SparseActs, reconstruct, rows_of_bands
from scansion.sae.forward import ForwardPass, Part

if TYPE_CHECKING:
    from scansion.sae.base import SAE


@dataclass(frozen=True)
class SparseBlock:
    """A block of which only the selected entries are kept; what else a loss reads is computed again.

    Attributes:
        sae: whose encoder it is.
        rows: of the batch's position axis.
        features: indices of the w features; None for all, in order.
        pieces: the features, as ranges of d_sae.
        centred: the block's tokens, less their decoder bias.
        closed: True where the mask keeps a feature from firing; None if it does so nowhere.
    """

    sae: SAE
    rows: slice
    features: Int[Tensor, "w"] | None
    pieces: tuple[slice, ...]
    centred: Float[Tensor, "p n d_in"]
    closed: Bool[Tensor, "p w"] | None

    def pre_acts(self, places: Int[Tensor, "s"] | None) -> Float[Tensor, "p n s"]:
        """Pre-activations of the features at these places; of all for None."""
        if places is None:
            places = torch.arange(self.encoder().width, device=self.centred.device)
        names = places if self.features is None else self.features[places]
        pre_acts = self.centred @ self.sae.W_enc.T[names].T + self.sae.b_enc[names]
        return pre_acts if self.closed is None else pre_acts.masked_fill(self.closed[:, None, places], -torch.inf)

    def acts(self, entries: SparseActs) -> Float[Tensor, "p n w"]:
        """All activations, from the entries of the whole batch."""
        n = self.centred.shape[1]
        rows = range(*self.rows.indices((len(entries.offsets) - 1) // n))
        first, last = (int(entries.offsets[row * n]) for row in (rows.start, rows.stop))
        cells = entries.tokens[first:last] - rows.start * n, entries.features[first:last]
        acts = entries.values.new_zeros(len(rows) * n, entries.d_sae).index_put(cells, entries.values[first:last])
        return (acts if self.features is None else acts[:, self.features]).unflatten(0, (len(rows), n))

    def encoder(self) -> Encoder:
        """What the block's entries are selected from."""
        W_enc, b_enc = self.sae.W_enc.detach().T, self.sae.b_enc.detach()
        return Encoder(self.centred.detach(), W_enc, b_enc, self.pieces, self.closed)


def sparse_forward(sae: SAE, x: Float[Tensor, "P n d_in"], positions: Int[Tensor, "P"]) -> ForwardPass | None:
    """A training forward pass from the active entries alone, by bands where the mask has them; None where that does not pay.

    Arguments as for :meth:`SAE.losses`.
    """
    if not sae.mask.is_binary_gate:
        return None
    centred = x - sae.bias_at(positions[:, None])
    blocks = _blocks(sae, centred, positions)
    with torch.no_grad():
        selected = sae.select_active([block.encoder() for block in blocks])
    if selected is None:
        return None
    biases = sae.b_dec.view(-1, sae.d_in)
    bias_of_token = None if len(biases) == 1 else sae.mask.band_at(positions).repeat_interleave(x.shape[1])
    tokens = centred.detach().flatten(0, 1)
    entries, residual = reconstruct(selected, tokens, sae.W_enc, sae.b_enc, sae.W_dec, biases, bias_of_token)
    return ForwardPass(
        x,
        positions,
        residual.view_as(x),
        [Part(block.rows, block.features, block.pre_acts, partial(block.acts, entries)) for block in blocks],
        selected.fired(),
        known_activity=entries.values.sum(),
        known_values=selected.values,
    )


def _blocks(sae: SAE, x: Tensor, positions: Tensor) -> list[SparseBlock]:
    bands = sae.mask.bands()
    if bands is None:
        closed = ~sae.mask.can_fire(positions) if sae.mask.can_block else None
        return [SparseBlock(sae, slice(None), None, (slice(None),), x, closed)]
    rows = rows_of_bands(positions, bands.edges, bands.shared, bands.sizes)
    return [
        SparseBlock(
            sae, band.rows, band.features(bands.shared, x.device), band.pieces(bands.shared), x[band.rows], None
        )
        for band in rows
        if band.rows.stop > band.rows.start
    ]
