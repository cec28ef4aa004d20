"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"), the plain baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.execution import (
    Encoder,
    ReluBlock,
    SparseActs,
    most_active_relu,
    relu_forward,
    rows_of_bands,
    select_positive,
)
from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass, Part
from scansion.sae.registry import register_architecture


class ReluConfig(SAEConfig, frozen=True):
    """Settings of :class:`ReluSAE`."""

    architecture: Literal["relu"] = "relu"
    l1_coefficient: float = Field(
        default=0.04, ge=0, description="Weight of the L1 penalty, for inputs scaled to unit mean norm."
    )


@register_architecture(ReluConfig)
class ReluSAE(SAE):
    """``acts = relu(pre_acts)``; the penalty is the coefficient times the sum of activations of a token."""

    config: ReluConfig
    revival = "resample"

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        return pre_acts.relu()

    def fused_forward(self, x: Float[Tensor, "P n d_in"], positions: Int[Tensor, "P"]) -> ForwardPass:
        biases, bias = self.b_dec.view(-1, self.d_in), self.bias_at(positions[:, None])
        blocks = self._relu_blocks(positions)
        out = relu_forward((x - bias).detach(), self.W_enc, self.b_enc, self.W_dec, biases, blocks)
        parts = [self._part(block, x, positions) for block in blocks]
        return ForwardPass(x, positions, out.residual, parts, out.fired, known_activity=out.activity)

    def _part(self, block: ReluBlock, x: Tensor, positions: Tensor) -> Part:
        """A block of which nothing is kept: what a loss reads is computed again."""
        features = None
        if block.width < self.d_sae:
            features = torch.cat([torch.arange(piece.start, piece.stop, device=x.device) for piece in block.pieces])

        def pre_acts(places: Tensor | None) -> Tensor:
            if places is None:
                places = torch.arange(block.width, device=x.device)
            names = places if features is None else features[places]
            centred = x[block.rows] - self.bias_at(positions[block.rows, None])
            found = centred @ self.W_enc.T[names].T + self.b_enc[names]
            return found if block.closed is None else found.masked_fill(block.closed[:, None, places], -torch.inf)

        return Part(block.rows, features, pre_acts, lambda: self.activate(pre_acts(None), features))

    def select_active(self, encoders: Sequence[Encoder]) -> SparseActs | None:
        return select_positive(encoders, most_active_relu(encoders), self.d_sae)

    def sparsity_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        # Decoder rows have unit norm, so the plain sum is the norm-weighted one.
        return self.config.l1_coefficient * forward.activity / forward.n_tokens

    def _relu_blocks(self, positions: Tensor) -> list[ReluBlock]:
        bands = self.mask.bands()
        if bands is not None and bands.shared < self.d_sae:  # else nothing tells the bands apart
            rows = rows_of_bands(positions, bands.edges, bands.shared, bands.sizes)
            return [
                ReluBlock(band.rows, band.pieces(bands.shared), None, index if self.b_dec.ndim > 1 else 0)
                for index, band in enumerate(rows)
                if band.rows.stop > band.rows.start
            ]
        closed = ~self.mask.can_fire(positions) if self.mask.can_block else None
        if self.b_dec.ndim == 1:
            return [ReluBlock(slice(0, len(positions)), (slice(0, self.d_sae),), closed, 0)]
        biases, counts = torch.unique_consecutive(self.mask.band_at(positions), return_counts=True)
        blocks: list[ReluBlock] = []
        first = 0
        for bias, count in zip(biases.tolist(), counts.tolist(), strict=True):
            rows = slice(first, first + count)
            blocks.append(ReluBlock(rows, (slice(0, self.d_sae),), None if closed is None else closed[rows], bias))
            first += count
        return blocks
