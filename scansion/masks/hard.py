"""What hard masks share: a table of truth values, fixed when the mask is drawn."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.masks.base import MaskConfig, PositionalMask
from scansion.masks.gate import Gate


class HardMask(PositionalMask):
    """A binary mask.

    Args:
        config: the family's settings.
        n_positions: context length L.
        d_sae: number of features.
        bound: True where a bound feature may fire.

    Example:
        >>> mask = scansion.build_mask(scansion.BandMaskConfig(count=2), n_positions=4, d_sae=6)
        >>> isinstance(mask, scansion.HardMask), mask.table()
    """

    def __init__(self, config: MaskConfig, n_positions: int, d_sae: int, bound: Bool[Tensor, "L d_bound"]) -> None:
        super().__init__(config, n_positions, d_sae)
        self.open: Bool[Tensor, "L d_sae"]
        shared = torch.ones(n_positions, self.n_shared, dtype=torch.bool)
        self.register_buffer("open", torch.cat([shared, bound], dim=1))

    @property
    def hard(self) -> bool:
        """True."""
        return True

    @property
    def gate(self) -> Gate:
        return Gate.of(self.config.acts_on, binary=True)

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return self.open[:, self.n_shared :].float()

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return self.is_open(positions).float()

    def is_open(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        return self.open[self.table_rows(positions)]
