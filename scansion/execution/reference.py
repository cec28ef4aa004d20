"""The dense way: all features at all positions. The reference for every faster way."""

from __future__ import annotations

from scansion.activations import PositionedBatch
from scansion.execution.blocks import whole_block
from scansion.masks import gated_product
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass, Part, count_fired


def dense_forward(sae: SAE, batch: PositionedBatch) -> ForwardPass:
    """A training forward pass computed over all features and positions; any mask, any architecture."""
    x, positions = batch.x, batch.positions
    pre_acts, acts = sae.masked_acts(x, positions[:, None])
    weights = sae.mask(positions[:, None]) if sae.mask.gate.gradient else None
    decoded = acts @ sae.W_dec if weights is None else gated_product(acts, sae.W_dec, weights)
    residual = x - (decoded + sae.bias_at(positions[:, None]))
    parts = [Part.computed(whole_block(len(x), sae.d_sae), pre_acts, acts)]
    return ForwardPass(x, positions, residual, parts, count_fired(parts, sae.d_sae), decoder_weights=weights)
