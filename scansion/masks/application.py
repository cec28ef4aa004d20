"""How weights act on pre-activations and gradients: the arithmetic behind ``acts_on``."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def mask_pre_acts(
    pre_acts: Float[Tensor, "*batch d"], weights: Float[Tensor, "..."] | Bool[Tensor, "..."]
) -> Float[Tensor, "*batch d"]:
    """``weights * pre_acts``, and minus infinity where the weight is 0 or False.

    Minus infinity, not zero: a masked feature must never win a place in a top-k, nor be modelled by an auxiliary loss.
    """
    if weights.dtype == torch.bool:
        return pre_acts.masked_fill(~weights, -torch.inf)
    return (pre_acts * weights).masked_fill(weights == 0, -torch.inf)


def gate_gradient(x: Float[Tensor, "*batch d"], weights: Float[Tensor, "..."]) -> Float[Tensor, "*batch d"]:
    """``x`` itself; its gradient is multiplied by ``weights``, which receive none."""
    return _GateGradient.apply(x, weights.detach())


def straight_through(
    acts: Float[Tensor, "*batch d"], weights: Float[Tensor, "..."], let_in: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d"]:
    """``acts`` as they are, with a gradient for ``weights`` as if activations were ``weights * let_in``.

    The estimator of Bengio et al. 2013 ("Estimating or propagating gradients"), applied to the mask only: the features
    themselves learn from the hard mask. With the soft mask's gradient, features that win under the soft mask would learn in
    place of those that fired.

    Args:
        acts: activations under the hard mask.
        weights: the soft mask, broadcasting against ``acts``.
        let_in: the activation of each feature if it were open.
    """
    return acts + (weights - weights.detach()) * let_in


def gated_product(
    acts: Float[Tensor, "*batch d_sae"], W_dec: Float[Tensor, "d_sae d_in"], weights: Float[Tensor, "..."]
) -> Float[Tensor, "*batch d_in"]:
    """``acts @ W_dec``, where a token's gradient to each row of ``W_dec`` is multiplied by the feature's weight there."""
    return _GatedProduct.apply(acts, W_dec, weights.detach())


class _GateGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, W_dec: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(acts, W_dec, weights)
        return acts @ W_dec

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        acts, W_dec, weights = ctx.saved_tensors
        gradient = gradients[0]
        to_W_dec = (acts * weights).flatten(0, -2).T @ gradient.flatten(0, -2)
        return gradient @ W_dec.T, to_W_dec, None
