"""What learnt masks share: a logit per bound feature and position, a temperature, and a schedule of updates."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scansion.masks.base import MaskConfig, PositionalMask
from scansion.masks.schedule import MaskUpdates, Temperature
from scansion.masks.starts import Start

# A temperature of 0 means a step function; dividing by this instead gives exactly that in float32.
COLDEST = 1e-12


class LearntConfig(MaskConfig, frozen=True):
    """Settings that every learnt family has.

    Example:
        >>> isinstance(scansion.SoftMaskConfig(), scansion.LearntConfig)
    """

    start: Start = Start()
    temperature: Temperature = Temperature()
    updates: MaskUpdates = MaskUpdates()

    @property
    def usage_source(self) -> Path | None:
        return self.start.sae

    @property
    def starts_from_usage(self) -> bool:
        return self.start.kind == "from_usage"


class LearntMask(PositionalMask):
    """Weights are a function of ``logits / temperature``; the family says which.

    Args:
        config: start, temperature, updates.
        n_positions: context length L.
        d_sae: number of features.

    Example:
        >>> mask = scansion.build_mask(scansion.SoftMaskConfig(), n_positions=4, d_sae=6)
        >>> isinstance(mask, scansion.LearntMask), mask.table().detach()
    """

    config: LearntConfig

    def __init__(self, config: LearntConfig, n_positions: int, d_sae: int) -> None:
        super().__init__(config, n_positions, d_sae)
        generator = torch.Generator().manual_seed(config.seed)
        self.temperature: Float[Tensor, ""]
        self.register_buffer("temperature", torch.tensor(max(config.temperature.start, COLDEST)))
        weights = config.start.weights(n_positions, self.d_bound, generator)
        self.logits: Float[Tensor, "L d_bound"] = nn.Parameter(self.logits_of(weights))

    def logits_of(self, weights: Float[Tensor, "L d_bound"]) -> Float[Tensor, "L d_bound"]:
        """The logits that give ``weights`` (in (0, 1)) at the starting temperature."""
        return weights.logit() * (self.config.temperature.start or 1.0)

    @torch.no_grad()
    def start_from_usage(self, usage: Float[Tensor, "L d_sae"]) -> None:
        """Start from how often each feature of a trained SAE fires at each position; its peak gets the highest weight."""
        bound = usage[:, self.n_shared :].to(self.logits.device, torch.float32)
        shape = bound / bound.amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        self.logits.copy_(self.logits_of(self.config.start.scaled(shape)))

    def begin_step(self, step: int, n_steps: int) -> None:
        self.temperature.fill_(max(self.config.temperature.at(step, n_steps), COLDEST))

    @property
    def lr_multiplier(self) -> float:
        return self.config.updates.lr_multiplier

    def moves_at(self, step: int) -> bool:
        return self.config.updates.at(step)
