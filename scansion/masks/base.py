"""What every positional mask is: a small module that maps positions to one weight in [0, 1] per feature."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

from scansion.errors import ShapeError


class MaskConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of one mask family; each family adds its own and a ``family`` that names it."""

    family: str


class PositionalMask(nn.Module, ABC):
    """Which of ``d_sae`` features may fire at which of ``n_positions`` positions, and how strongly.

    Args:
        config: the family's settings.
        n_positions: context length L.
        d_sae: number of features.
    """

    hard: bool
    """True if every weight is 0 or 1."""

    def __init__(self, config: MaskConfig, n_positions: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.n_positions = n_positions
        self.d_sae = d_sae

    @abstractmethod
    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        """The mask's weight in [0, 1] for every feature at each of ``positions``."""

    @abstractmethod
    def apply_to(
        self, pre_acts: Float[Tensor, "*batch d_sae"], positions: Int[Tensor, "..."]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Mask pre-activations, before the activation function sees them.

        Args:
            pre_acts: encoder output.
            positions: broadcasts against the leading axes of ``pre_acts``.
        """

    def allowed(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        """Where a feature can fire at all: weight above 0."""
        return self(positions) > 0

    def check_positions(self, positions: Int[Tensor, "..."]) -> None:
        """Raise :class:`ShapeError` if a position lies outside the mask, naming both numbers."""
        if positions.numel() == 0:
            return
        lowest, highest = torch.aminmax(positions)
        if highest >= self.n_positions or lowest < 0:
            worst = int(highest) if highest >= self.n_positions else int(lowest)
            raise ShapeError(
                f"position {worst} lies outside this mask of {self.n_positions} positions (0 to "
                f"{self.n_positions - 1}); cut the context to {self.n_positions} tokens or train a longer mask"
            )
