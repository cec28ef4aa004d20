"""A training forward pass from the active entries alone, for SAEs whose mask and activation function allow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.execution import Encoder, reconstruct, rows_of_bands
from scansion.sae.blocks import Block, Losses

if TYPE_CHECKING:
    from scansion.sae.base import SAE


@dataclass(frozen=True)
class SparseBlock(Block):
    """A block of which only the selected entries are kept; what else is asked for is computed again.

    Attributes:
        sae: whose encoder it is.
        pieces: the features, as ranges of d_sae.
        centred: the block's tokens, less their decoder bias.
        closed: True where the mask keeps a feature from firing; None if it does so nowhere.
    """

    sae: SAE
    pieces: tuple[slice, ...]
    centred: Float[Tensor, "p n d_in"]
    closed: Bool[Tensor, "p w"] | None

    def pre_acts_of(self, places: Int[Tensor, "s"]) -> Float[Tensor, "p n s"]:
        names = self.named(places)
        pre_acts = self.centred @ self.sae.W_enc.T[names].T + self.sae.b_enc[names]
        return pre_acts if self.closed is None else pre_acts.masked_fill(self.closed[:, None, places], -torch.inf)

    def encoder(self) -> Encoder:
        """What the block's entries are selected from."""
        W_enc, b_enc = self.sae.W_enc.detach().T, self.sae.b_enc.detach()
        return Encoder(self.centred.detach(), W_enc, b_enc, self.pieces, self.closed)


def sparse_losses(
    sae: SAE, x: Float[Tensor, "P n d_in"], positions: Int[Tensor, "P"], dead: Bool[Tensor, "d_sae"]
) -> Losses | None:
    """:meth:`SAE.losses` from the active entries alone, by bands where the mask has them; None where that does not pay.

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
    residual = residual.view_as(x)
    sae.after_forward([selected.values])
    return Losses(
        reconstruction=sae.reconstruction_loss(residual, [], None),
        sparsity=sae.sparsity_of(entries),
        auxiliary=sae.auxiliary_loss(residual, blocks, dead),
        residual=residual,
        fired=selected.fired(),
    )


def _blocks(sae: SAE, x: Tensor, positions: Tensor) -> list[SparseBlock]:
    bands = sae.mask.bands()
    if bands is None:
        closed = ~sae.mask.can_fire(positions) if sae.mask.can_block else None
        return [SparseBlock(slice(None), None, sae, (slice(None),), x, closed)]
    rows = rows_of_bands(positions, bands.edges, bands.shared, bands.sizes)
    return [
        SparseBlock(
            band.rows, band.features(bands.shared, x.device), sae, band.pieces(bands.shared), x[band.rows], None
        )
        for band in rows
        if band.rows.stop > band.rows.start
    ]
