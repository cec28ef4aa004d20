"""No mask: every feature may fire everywhere, at any position however far."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.masks.base import MaskConfig, PositionalMask


class NoMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`NoMask`: none."""

    family: Literal["none"] = "none"


class NoMask(PositionalMask):
    """The mask of an SAE that has none. It leaves pre-activations untouched and has no position limit."""

    hard = True

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.ones((), device=positions.device).expand(*positions.shape, self.d_sae)

    def apply_to(
        self, pre_acts: Float[Tensor, "*batch d_sae"], positions: Int[Tensor, "..."]
    ) -> Float[Tensor, "*batch d_sae"]:
        return pre_acts
