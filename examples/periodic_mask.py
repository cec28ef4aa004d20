"""A mask of one's own: feature f may fire where position mod m is f mod m.

Try it with ``scansion --plugin examples/periodic_mask.py train STORE --mask "periodic, period: 4" --out runs/periodic``.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from scansion import HardMask, MaskConfig, register_mask


class PeriodicMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`PeriodicMask`; ``acts_on``, ``shared``, ``beyond`` and ``seed`` come with every mask."""

    family: Literal["periodic"] = "periodic"
    period: int = Field(default=4, ge=1, description="m: features take turns at m successive positions.")


@register_mask(PeriodicMaskConfig)
class PeriodicMask(HardMask):
    """1 where position mod m is feature mod m, else 0."""

    def __init__(self, config: PeriodicMaskConfig, n_positions: int, d_sae: int) -> None:
        d_bound = d_sae - round(config.shared * d_sae)
        positions, features = torch.arange(n_positions)[:, None], torch.arange(d_bound)
        super().__init__(config, n_positions, d_sae, positions % config.period == features % config.period)
