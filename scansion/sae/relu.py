"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"), the plain baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.kernels import Encoder, Entries, most_active, select_positive
from scansion.sae.base import SAE, SAEConfig
from scansion.sae.blocks import Part, n_tokens, sum_over


class ReluConfig(SAEConfig, frozen=True):
    """Settings of :class:`ReluSAE`."""

    architecture: Literal["relu"] = "relu"
    l1_coefficient: float = Field(
        default=0.04, ge=0, description="Weight of the L1 penalty, for inputs scaled to unit mean norm."
    )


class ReluSAE(SAE):
    """``acts = relu(pre_acts)``; the penalty is the coefficient times the sum of activations of a token."""

    config: ReluConfig
    revival = "resample"

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        return pre_acts.relu()

    def sparsity_loss(self, parts: Sequence[Part]) -> Float[Tensor, ""]:
        # Decoder rows have unit norm, so the plain sum is the norm-weighted one.
        return self.config.l1_coefficient * sum_over(part.acts for part in parts) / n_tokens(parts)

    def select(self, encoders: Sequence[Encoder]) -> Entries | None:
        return select_positive(encoders, most_active(encoders), self.d_sae)

    def sparsity_of(self, entries: Entries) -> Float[Tensor, ""]:
        return self.config.l1_coefficient * entries.values.sum() / (len(entries.offsets) - 1)
