"""Soft mask: a learnable weight in [0, 1] for every feature and position."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from scansion.masks.learnt import LearntConfig, LearntMask
from scansion.masks.registry import register_mask


class SoftMaskConfig(LearntConfig, frozen=True):
    """Settings of :class:`SoftMask`.

    Example:
        >>> scansion.SoftMaskConfig(shared=0.25)
    """

    family: Literal["soft"] = "soft"
    l1_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of a penalty on the mean weight of the mask, which closes positions."
    )
    entropy_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="Weight of a penalty on the mean entropy (nats) of the weights, which pushes them to 0 or 1.",
    )


@register_mask(SoftMaskConfig)
class SoftMask(LearntMask):
    """Learns a weight in [0, 1] for every feature at every position.

    ``sigmoid(logits / temperature)``; at temperature 0 a step function.
    """

    config: SoftMaskConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return (self.logits / self.temperature).sigmoid()

    def regulariser(self) -> Float[Tensor, ""]:
        config, weights = self.config, self.bound_weights()
        penalty = weights.new_zeros(())
        if config.l1_coefficient:
            penalty = penalty + config.l1_coefficient * weights.mean()
        if config.entropy_coefficient:
            # The entropy of sigmoid(z), written without logarithms of 0.
            z = self.logits / self.temperature
            entropy = nn.functional.softplus(z) - z * weights
            penalty = penalty + config.entropy_coefficient * entropy.mean()
        return penalty
