"""Learned position importance: each feature spreads a fixed amount of weight over the positions."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scansion.masks.learnt import LearntConfig, LearntMask
from scansion.masks.registry import register_mask


class ImportanceMaskConfig(LearntConfig, frozen=True):
    """Settings of :class:`ImportanceMask`.

    Example:
        >>> scansion.ImportanceMaskConfig(shared=0.25)
    """

    family: Literal["importance"] = "importance"


@register_mask(ImportanceMaskConfig)
class ImportanceMask(LearntMask):
    """Learns how to spread a fixed total weight (mean 1) of each feature over the positions.

    ``L * softmax(logits / temperature)``: 0 or above, at most L. Raising a feature at one position lowers it at the
    others; the colder, the more it must choose.
    """

    config: ImportanceMaskConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def logits_of(self, weights: Float[Tensor, "L d_bound"]) -> Float[Tensor, "L d_bound"]:
        return weights.log() * (self.config.temperature.start or 1.0)

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return self.n_positions * (self.logits / self.temperature).softmax(dim=0)
