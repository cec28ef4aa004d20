"""Random hard mask: each feature may fire at a fixed, randomly drawn set of positions and nowhere else."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks.base import MaskConfig, PositionalMask


class RandomHardMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`RandomHardMask`."""

    family: Literal["random_hard"] = "random_hard"
    positions_per_feature: int | None = Field(
        default=None, ge=1, description="Positions each feature may fire at; default an eighth of the context."
    )
    seed: int = Field(default=0, description="Seed of the drawing.")


class RandomHardMask(PositionalMask):
    """Binary mask in which every feature has exactly n positions and every position an equal share of features.

    Args:
        config: n (``positions_per_feature``) and the seed.
        n_positions: context length L; n lies in [1, L].
        d_sae: number of features.

    Raises:
        ConfigError: n is larger than the context.
    """

    hard = True

    def __init__(self, config: RandomHardMaskConfig, n_positions: int, d_sae: int) -> None:
        super().__init__(config, n_positions, d_sae)
        n = config.positions_per_feature or max(1, n_positions // 8)
        if n > n_positions:
            raise ConfigError(f"positions_per_feature is {n}, but a context has only {n_positions} positions")
        generator = torch.Generator().manual_seed(config.seed)
        self.table: Bool[Tensor, "L d_sae"]
        self.register_buffer("table", _balanced_table(n_positions, d_sae, n, generator))

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        return self.allowed(positions).float()

    def allowed(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        self.check_positions(positions)
        return self.table[positions]

    def apply_to(
        self, pre_acts: Float[Tensor, "*batch d_sae"], positions: Int[Tensor, "..."]
    ) -> Float[Tensor, "*batch d_sae"]:
        # Minus infinity, not zero: a masked feature must never win a place in a top-k.
        return pre_acts.masked_fill(~self.allowed(positions), -torch.inf)


def _balanced_table(n_positions: int, d_sae: int, n: int, generator: torch.Generator) -> Bool[Tensor, "L d_sae"]:
    """Give each feature the n positions least used so far, ties broken at random: use never differs by more than one."""
    table = torch.zeros(n_positions, d_sae, dtype=torch.bool)
    used = torch.zeros(n_positions)
    for feature in range(d_sae):
        tie_break = torch.rand(n_positions, generator=generator)
        chosen = torch.argsort(used + tie_break)[:n]
        table[chosen, feature] = True
        used[chosen] += 1
    return table
