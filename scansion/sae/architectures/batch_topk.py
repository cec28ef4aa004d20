"""BatchTopK SAE (Bussmann et al. 2024): the k x batch largest features of a batch; a fixed threshold when in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.sae.architectures.topk import TopKKindConfig, TopKKindSAE
from scansion.sae.base import SAEConfig
from scansion.sae.forward import ForwardPass
from scansion.sae.registry import register_architecture
from scansion.sae.structure import KeepsTopKOfBatch, Selection


class BatchTopKKindConfig(TopKKindConfig, frozen=True):
    """Settings of all architectures whose tokens compete for places."""

    threshold_decay: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the running mean of the inference threshold that each training step keeps.",
    )


class BatchTopKConfig(BatchTopKKindConfig, frozen=True):
    """Settings of :class:`BatchTopKSAE`.

    Example:
        >>> scansion.BatchTopKConfig(d_sae=2304, k=32)
    """

    architecture: Literal["batch_topk"] = "batch_topk"


@register_architecture(BatchTopKConfig)
class BatchTopKSAE(TopKKindSAE):
    """Keeps the largest activations of a whole batch, k per token on average; in use, those above a fixed threshold.

    The threshold is a running mean, taken in training, of the smallest activation that was kept, so that a token's
    code does not depend on which others are in its batch.
    """

    config: BatchTopKKindConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, n_positions, generator)
        self.threshold: Float[Tensor, ""]
        # Minus one means that no training step has set it yet.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        if not self.training:
            acts = pre_acts.relu()
            return acts * (acts > self.threshold.clamp_min(0.0))
        return self._compete([pre_acts])[0]

    def activate_bands(
        self, pre_acts: Sequence[Float[Tensor, "_ n _"]], features: Sequence[Int[Tensor, "_"] | None]
    ) -> list[Float[Tensor, "_ n _"]]:
        if not self.training:
            return super().activate_bands(pre_acts, features)
        return self._compete(pre_acts)

    def _compete(self, pre_acts: Sequence[Tensor]) -> list[Tensor]:
        """All tokens of all bands compete for the places of the batch."""
        acts = [pre.relu() for pre in pre_acts]
        every = torch.cat([act.flatten() for act in acts])
        n_places = self.config.k * sum(pre.shape[:-1].numel() for pre in pre_acts)
        smallest = every.detach().topk(min(n_places, len(every)), sorted=False).values.min()
        return [act * (act >= smallest) for act in acts]

    def selection(self) -> Selection | None:
        return KeepsTopKOfBatch(self.config.k, self.threshold) if self.training else None

    @torch.no_grad()
    def after_forward(self, forward: ForwardPass) -> None:
        smallest_of_parts = [values.where(values > 0, torch.inf).min() for values in forward.values if values.numel()]
        if not smallest_of_parts:
            return
        smallest = torch.stack(smallest_of_parts).min()
        decay = torch.where(self.threshold < 0, 0.0, self.config.threshold_decay)
        # If nothing fired, the threshold stays.
        updated = torch.where(smallest.isfinite(), decay * self.threshold + (1 - decay) * smallest, self.threshold)
        self.threshold.copy_(updated)

    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        self.threshold /= scale
