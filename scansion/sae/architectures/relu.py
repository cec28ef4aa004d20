"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"), the plain baseline."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass
from scansion.sae.registry import register_architecture
from scansion.sae.structure import KeepsPositive, Selection


class ReluConfig(SAEConfig, frozen=True):
    """Settings of :class:`ReluSAE`.

    Example:
        >>> scansion.ReluConfig(d_sae=2304, l1_coefficient=0.04)
    """

    architecture: Literal["relu"] = "relu"
    l1_coefficient: float = Field(
        default=0.04, ge=0, description="Weight of the L1 penalty, for inputs scaled to unit mean norm."
    )


@register_architecture(ReluConfig)
class ReluSAE(SAE):
    """ReLU with an L1 penalty: the plain baseline.

    ``acts = relu(pre_acts)``; the penalty is the coefficient times the sum of activations of a token.
    """

    config: ReluConfig
    revival = "resample"
    auxiliary_per = "token"

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        return pre_acts.relu()

    def selection(self) -> Selection | None:
        return KeepsPositive()

    def sparsity_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        # Decoder rows have unit norm, so the plain sum is the norm-weighted one.
        return self.config.l1_coefficient * forward.activity / forward.n_tokens
