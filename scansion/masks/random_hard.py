"""Random hard mask: each feature may fire at a fixed, randomly drawn set of positions and nowhere else."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks.base import MaskConfig
from scansion.masks.hard import HardMask
from scansion.masks.registry import register_mask


class RandomHardMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`RandomHardMask`.

    Example:
        >>> scansion.RandomHardMaskConfig(positions_per_feature=16)
    """

    family: Literal["random_hard"] = "random_hard"
    positions_per_feature: int | None = Field(
        default=None, ge=1, description="Positions each bound feature may fire at; default an eighth of the context."
    )


@register_mask(RandomHardMaskConfig)
class RandomHardMask(HardMask):
    """Each feature may fire at exactly n random positions; every position has equally many features, to within one.

    Args:
        config: n (``positions_per_feature``) and the seed.
        n_positions: context length L; n must be in [1, L].
        d_sae: number of features.

    Raises:
        ConfigError: n is larger than the context.
    """

    def __init__(self, config: RandomHardMaskConfig, n_positions: int, d_sae: int) -> None:
        n = config.positions_per_feature or max(1, n_positions // 8)
        if n > n_positions:
            raise ConfigError(f"positions_per_feature is {n}, but a context has only {n_positions} positions")
        generator = torch.Generator().manual_seed(config.seed)
        d_bound = d_sae - round(config.shared * d_sae)
        super().__init__(config, n_positions, d_sae, _balanced_table(n_positions, d_bound, n, generator))


def _balanced_table(n_positions: int, d_bound: int, n: int, generator: torch.Generator) -> Bool[Tensor, "L d_bound"]:
    """Give each feature the n positions least used so far, ties broken at random: use never differs by more than one."""
    table = torch.zeros(n_positions, d_bound, dtype=torch.bool)
    used = torch.zeros(n_positions)
    for feature in range(d_bound):
        tie_break = torch.rand(n_positions, generator=generator)
        chosen = torch.argsort(used + tie_break)[:n]
        table[chosen, feature] = True
        used[chosen] += 1
    return table
