"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): one path says which features fire, another how strongly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from scansion.masks.base import MaskedActs
from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass, sum_over
from scansion.sae.registry import register_architecture


class GatedConfig(SAEConfig, frozen=True):
    """Settings of :class:`GatedSAE`."""

    architecture: Literal["gated"] = "gated"
    l1_coefficient: float = Field(
        default=0.04, ge=0, description="Weight of the L1 penalty on the gates, for inputs scaled to unit mean norm."
    )


@register_architecture(GatedConfig)
class GatedSAE(SAE):
    """One path decides which features fire and another how strongly, so that the L1 penalty does not shrink activations.

    ``acts = 1[gate > 0] * relu(exp(r_mag) * (gate - b_enc) + b_mag)``, where ``gate`` are the pre-activations.

    ``b_enc`` is the paper's b_gate. Gate and magnitude share the encoder up to a scale per feature, and each has its own
    bias. The penalty acts on the gates alone, so that it does not shrink the activations. A blocked feature's gate is
    closed; a weight between 0 and 1 multiplies both paths, biases included.
    """

    config: GatedConfig
    revival = "resample"
    auxiliary_per = "token"

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, n_positions, generator)
        self.r_mag: Float[Tensor, "d_sae"] = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag: Float[Tensor, "d_sae"] = nn.Parameter(torch.zeros(self.d_sae))

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch w"],
        features: Int[Tensor, "w"] | None = None,
        weights: Float[Tensor, "... w"] | float = 1.0,
    ) -> Float[Tensor, "*batch w"]:
        r_mag, b_mag, b_gate = (
            each if features is None else each[features] for each in (self.r_mag, self.b_mag, self.b_enc)
        )
        is_open = pre_acts > 0
        # A closed gate may be minus infinity, which times a gradient of 0 would be NaN: compute with 0 in its place.
        magnitudes = r_mag.exp() * (pre_acts.where(is_open, 0.0) - weights * b_gate) + weights * b_mag
        return magnitudes.relu().where(is_open, 0.0)

    def _masked_acts_by(self, activate: Callable[[Tensor], Tensor], x: Tensor, positions: Tensor | None) -> MaskedActs:
        gate = self.mask.gate
        if gate.kind == "weights" and gate.forward:
            # The mask multiplies pre-activations only; the biases of the magnitudes need its weights too.
            positions = self.positions_of(x, positions)
            activate = partial(self.activate, weights=self.mask(positions))
        return super()._masked_acts_by(activate, x, positions)

    def sparsity_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        gates = sum_over(part.pre_acts.relu() for part in forward.parts)
        return self.config.l1_coefficient * gates / forward.n_tokens

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        """The squared error of what the gates alone reconstruct, by a decoder that does not learn from it.

        It is what teaches the gates, to which the step function of the reconstruction sends no gradient.
        """
        W_dec, bias = self.W_dec.detach(), self.bias_at(forward.positions[:, None]).detach()
        target = forward.x - bias
        errors = [
            (target[part.block.rows] - part.pre_acts.relu() @ part.block.of_features(W_dec)).square()
            for part in forward.parts
        ]
        return sum_over(errors) / forward.n_tokens

    def feature_axes(self) -> list[tuple[Tensor, int]]:
        return [*super().feature_axes(), (self.r_mag, 0), (self.b_mag, 0)]

    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        with torch.no_grad():
            self.b_mag /= scale

    def rescale_features(self, factor: Float[Tensor, "d_sae"]) -> None:
        super().rescale_features(factor)
        with torch.no_grad():
            self.b_mag *= factor
