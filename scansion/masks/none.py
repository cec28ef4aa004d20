"""No mask: every feature may fire everywhere, at any position."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.masks.base import MaskConfig, PositionalMask
from scansion.masks.gate import ActsOn
from scansion.masks.registry import register_mask


class NoMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`NoMask`: none. What other masks can set is fixed here.

    Example:
        >>> scansion.TopKConfig(d_sae=64, k=8).mask == scansion.NoMaskConfig()
    """

    has_weights: ClassVar[bool] = False

    family: Literal["none"] = "none"
    # No mask is a mask that is never applied and repeats without end. As class variables these settings cannot be given, are
    # not saved, and get no seed from a plan.
    acts_on: ClassVar[ActsOn] = "placebo"  # pyright: ignore[reportIncompatibleVariableOverride]
    shared: ClassVar[float] = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]
    beyond: ClassVar[Literal["tile"]] = "tile"  # pyright: ignore[reportIncompatibleVariableOverride]
    seed: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]


@register_mask(NoMaskConfig)
class NoMask(PositionalMask):
    """No mask: every feature may fire everywhere, at any position."""

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return torch.ones(()).expand(self.n_positions, self.d_sae)

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.ones((), device=positions.device).expand(*positions.shape, self.d_sae)


class LiftedMask(NoMask):
    """Another mask, lifted: every feature may fire everywhere. Positions keep the decoder biases of the other mask.

    Args:
        mask: the mask that is lifted.
    """

    def __init__(self, mask: PositionalMask) -> None:
        super().__init__(NoMaskConfig(), mask.n_positions, mask.d_sae)
        self.below = mask

    def band_at(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        return self.below.band_at(positions)
