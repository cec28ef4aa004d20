"""The steps between the matrix products: the mask, the activation of ReLU and JumpReLU, and their gradients.

Each is one pass over [tokens, features] where there is a Triton kernel for it (:mod:`scansion.execution.cuda.activation`, the
same names and arguments). The private functions are torch's versions, which work everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.execution.backends import choose


@dataclass(frozen=True, eq=False)
class Activation:
    """How pre-activations of some tokens become activations. Nothing here has a gradient.

    Attributes:
        per_position: tokens at each position, n. Tokens are grouped by position.
        closed: True where the mask keeps a feature from firing; None if it keeps none.
        weights: what pre-activations are multiplied by; if ``closed`` is given too, they are not, and the weights learn
            straight through: see :func:`scansion.masks.application.straight_through`. None for a mask without weights.
        threshold: what a pre-activation must exceed to be kept, above 0; None for 0.
        bandwidth: width of the window around the threshold in which pre-activations give it a gradient.
    """

    per_position: int
    closed: Bool[Tensor, "p w"] | None = None
    weights: Float[Tensor, "p w"] | None = None
    threshold: Float[Tensor, "w"] | None = None
    bandwidth: float = 1.0

    @property
    def multiplies(self) -> bool:
        """True if pre-activations are multiplied by the weights."""
        return self.weights is not None and self.closed is None

    @property
    def straight_through(self) -> bool:
        """True if the weights learn as if they multiplied."""
        return self.weights is not None and self.closed is not None


class Activated(NamedTuple):
    """Result of :func:`activate`.

    Attributes:
        acts: activations.
        kept: what :func:`activate_backward` needs of the pre-activations; ``acts`` itself where that is enough.
        activity: the sum of all activations.
        fired: tokens that each feature fired on.
    """

    acts: Float[Tensor, "t w"]
    kept: Float[Tensor, "t w"]
    activity: Float[Tensor, ""]
    fired: Int[Tensor, "w"]


class ActivationGradients(NamedTuple):
    """Result of :func:`activate_backward`.

    Attributes:
        to_pre_acts: gradient of the pre-activations, before the mask.
        sums: of these over tokens, the gradient of the encoder's bias.
        to_threshold, to_weights: gradients of what the activation has; else None.
    """

    to_pre_acts: Float[Tensor, "t w"]
    sums: Float[Tensor, "w"]
    to_threshold: Float[Tensor, "w"] | None
    to_weights: Float[Tensor, "p w"] | None


def apply_mask(pre_acts: Float[Tensor, "t w"], activation: Activation) -> None:
    """Multiply pre-activations by the weights, or only block features, in place; blocked is minus infinity."""
    if activation.closed is not None or activation.weights is not None:
        choose("apply_mask", _apply_mask, pre_acts)(pre_acts, activation)


def _apply_mask(pre_acts: Tensor, activation: Activation) -> None:
    by_position = pre_acts.view(-1, activation.per_position, pre_acts.shape[1])
    closed, weights = activation.closed, activation.weights
    if closed is None:
        assert weights is not None
        by_position *= weights[:, None]
        closed = weights == 0
    by_position.masked_fill_(closed[:, None], -torch.inf)


def activate(pre_acts: Float[Tensor, "t w"], activation: Activation) -> Activated:
    """Mask and activate pre-activations, which may be overwritten.

    Args:
        pre_acts: contiguous.
        activation: mask and threshold.
    """
    return choose("activate", _activate, pre_acts)(pre_acts, activation)


def _activate(pre_acts: Tensor, activation: Activation) -> Activated:
    masked = pre_acts.clone() if activation.straight_through else pre_acts
    apply_mask(masked, activation)
    threshold = activation.threshold
    acts = masked.relu_() if threshold is None else masked.where(masked > threshold, 0.0)
    # Counted in float32, which is exact for whole numbers up to 2^24: a sum of booleans takes five times as long.
    fired = torch.gt(acts, 0, out=torch.empty_like(acts, dtype=torch.float32)).sum(dim=0).long()
    return Activated(acts, pre_acts, acts.sum(), fired)


def activate_backward(
    to_acts: Float[Tensor, "t w"],
    acts: Float[Tensor, "t w"],
    kept: Float[Tensor, "t w"],
    activation: Activation,
    to_count: Float[Tensor, ""],
) -> ActivationGradients:
    """Gradients of what :func:`activate` read.

    Args:
        to_acts: gradient of the activations; overwritten by that of the pre-activations.
        acts, kept: as :func:`activate` returned them.
        activation: as given to it.
        to_count: gradient of the number of activations above 0, which only a threshold has a part in: the straight-through
            estimators of Rajamanoharan et al. 2024, equations 11 and 12.
    """
    return choose("activate_backward", _activate_backward, to_acts)(to_acts, acts, kept, activation, to_count)


def _activate_backward(
    to_acts: Tensor, acts: Tensor, kept: Tensor, activation: Activation, to_count: Tensor
) -> ActivationGradients:
    to_threshold: Tensor | None = None
    to_weights: Tensor | None = None
    threshold, weights = activation.threshold, activation.weights

    def per_position(products: Tensor) -> Tensor:
        return products.view(-1, activation.per_position, products.shape[1]).sum(dim=1)

    if activation.straight_through:
        to_weights = per_position(to_acts * kept.where(kept > (0 if threshold is None else threshold), 0.0))
        if threshold is not None:
            kept = kept.clone()
            apply_mask(kept, activation)
    if threshold is not None:
        near = (kept - threshold).abs() < activation.bandwidth / 2
        shares = (to_acts * threshold + to_count).where(near, 0.0)
        to_threshold = shares.sum(dim=0) / -activation.bandwidth
    # What is not active, a closed feature among it, has no gradient.
    torch.ops.aten.threshold_backward.grad_input(to_acts, acts, 0, grad_input=to_acts)
    if activation.multiplies:
        assert weights is not None
        # The pre-activation of what is active is its activation over its weight, which is not 0.
        to_weights = (per_position(to_acts * acts) / weights).where(weights != 0, 0.0)
        to_acts.view(-1, activation.per_position, acts.shape[1]).mul_(weights[:, None])
    return ActivationGradients(to_acts, to_acts.sum(dim=0), to_threshold, to_weights)
