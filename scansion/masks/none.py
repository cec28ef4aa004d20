"""No mask: every feature may fire everywhere, at any position however far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.masks.base import FamilyConfig, MaskConfig, MaskedActs, PositionalMask


class NoMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`NoMask`: none."""

    family: Literal["none"] = "none"


class NoMask(PositionalMask):
    """No mask: every feature may fire everywhere, at any position however far."""

    def __init__(self, config: NoMaskConfig, n_positions: int, d_sae: int) -> None:
        # A mask that is never applied, tiled without end, is what having none amounts to.
        super().__init__(FamilyConfig(family=config.family, acts_on="placebo", beyond="tile"), n_positions, d_sae)

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return torch.ones(()).expand(self.n_positions, self.d_sae)

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.ones((), device=positions.device).expand(*positions.shape, self.d_sae)

    def apply_to(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        positions: Int[Tensor, "..."],
        activate: Callable[[Tensor], Tensor],
    ) -> MaskedActs:
        return MaskedActs(pre_acts, activate(pre_acts))


class LiftedMask(NoMask):
    """Another mask, lifted: every feature may fire everywhere. What the other says of decoder biases still holds.

    Args:
        mask: the mask that is lifted.
    """

    def __init__(self, mask: PositionalMask) -> None:
        super().__init__(NoMaskConfig(), mask.n_positions, mask.d_sae)
        self.below = mask

    def band_at(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        return self.below.band_at(positions)
