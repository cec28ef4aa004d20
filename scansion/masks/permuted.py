"""A permuted mask: the same weights, given to other features. An effect that remains comes from the mask alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.errors import ShapeError
from scansion.masks.base import MaskConfig, PositionalMask


class PermutedMask(PositionalMask):
    """Another mask with the columns of its bound features in another order; shared features stay shared.

    Args:
        mask: of any family; not changed.
        order: a permutation of its bound features: feature i gets the weights of feature ``order[i]``.

    Raises:
        ShapeError: ``order`` is not a permutation.
    """

    config: MaskConfig

    def __init__(self, mask: PositionalMask, order: Int[Tensor, "d_bound"]) -> None:
        if not torch.equal(order.sort().values.cpu(), torch.arange(mask.d_bound)):
            raise ShapeError(f"order should be a permutation of the {mask.d_bound} bound features")
        super().__init__(mask.config, mask.n_positions, mask.d_sae)
        self.below = mask
        shared = torch.arange(mask.n_shared, device=order.device)
        self.columns: Int[Tensor, "d_sae"]
        self.register_buffer("columns", torch.cat([shared, mask.n_shared + order]))

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return self.below.table()[:, self.columns[self.n_shared :]]

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return self.below(positions)[..., self.columns]

    def is_open(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        return self.below.is_open(positions)[..., self.columns]

    @property
    def n_decoder_biases(self) -> int:
        return self.below.n_decoder_biases

    def band_at(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        return self.below.band_at(positions)
