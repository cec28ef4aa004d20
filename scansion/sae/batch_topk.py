"""BatchTopK SAE (Bussmann et al. 2024): the k x batch largest features of a batch; a fixed threshold when in use."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from scansion.sae.base import SAEConfig
from scansion.sae.topk import TopKKindConfig, TopKKindSAE


class BatchTopKConfig(TopKKindConfig, frozen=True):
    """Settings of :class:`BatchTopKSAE`."""

    architecture: Literal["batch_topk"] = "batch_topk"
    threshold_decay: float = Field(
        default=0.9, ge=0, lt=1, description="Share of the running inference threshold kept at each training step."
    )


class BatchTopKSAE(TopKKindSAE):
    """Tokens compete for k x batch places in training; in use a feature fires above a threshold learnt meanwhile.

    The threshold is a running mean of the smallest activation that won a place, so that a token's code does not
    depend on which others are in its batch.
    """

    config: BatchTopKConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, n_positions, generator)
        self.threshold: Float[Tensor, ""]
        # Minus one means that no training step has set it yet.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def activate(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        acts = pre_acts.relu()
        if not self.training:
            return acts * (acts > self.threshold.clamp_min(0.0))
        n_tokens = pre_acts.shape[:-1].numel()
        kept = acts.flatten().topk(min(self.config.k * n_tokens, acts.numel()), sorted=False).values
        smallest = kept.detach().min()
        with torch.no_grad():
            decay = torch.where(self.threshold < 0, 0.0, self.config.threshold_decay)
            self.threshold.copy_(decay * self.threshold + (1 - decay) * smallest)
        return acts * (acts >= smallest)

    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        self.threshold /= scale
