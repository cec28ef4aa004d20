"""What a training forward pass hands to the losses, and what they make of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """What one training forward pass yields. Scalars are means over tokens, in units of the SAE's (scaled) input.

    Attributes:
        reconstruction: squared error summed over d_in; that of all its reconstructions for an architecture that makes
            several.
        sparsity: the architecture's penalty with its coefficient; 0 where sparsity is by construction.
        auxiliary: what keeps features alive, with its coefficient; 0 where nothing does.
        residual: x - x_hat.
        fired: tokens each feature fired on.
    """

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    residual: Float[Tensor, "P n d_in"]
    fired: Int[Tensor, "d_sae"]

    @property
    def mse(self) -> Float[Tensor, ""]:
        """Squared error of the whole reconstruction, without a gradient."""
        return squared_norm(self.residual.detach())


@dataclass(frozen=True)
class Block(ABC):
    """Some rows of a batch with the features they may use: one band, or, without bands, everything.

    Attributes:
        rows: of the batch's position axis.
        features: indices of the w features; None for all, in order.
    """

    rows: slice
    features: Int[Tensor, "w"] | None

    def of_features(self, values: Shaped[Tensor, "d_sae *rest"]) -> Shaped[Tensor, "w *rest"]:
        """Per-feature values, for this block's features."""
        return values if self.features is None else values[self.features]

    def named(self, places: Int[Tensor, "s"]) -> Int[Tensor, "s"]:
        """Indices of the features at these places of the block."""
        return places if self.features is None else self.features[places]

    @abstractmethod
    def pre_acts_of(self, places: Int[Tensor, "s"]) -> Float[Tensor, "p n s"]:
        """Pre-activations of the features at these places of the block."""


@dataclass(frozen=True)
class Part(Block):
    """A block that has been computed whole.

    Attributes:
        pre_acts, acts: before and after the activation function.
    """

    pre_acts: Float[Tensor, "p n w"]
    acts: Float[Tensor, "p n w"]

    def pre_acts_of(self, places: Int[Tensor, "s"]) -> Float[Tensor, "p n s"]:
        return self.pre_acts[..., places]


def n_tokens(parts: Sequence[Part]) -> int:
    """Tokens in all parts together."""
    return sum(part.acts.shape[0] * part.acts.shape[1] for part in parts)


def sum_over(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum of all entries of all tensors."""
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def squared_norm(x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, ""]:
    """The mean over all tokens of ``|x|^2``, in fewer passes over memory than squares and sums take."""
    return _SquaredNorm.apply(x)


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vector_norm(x, dim=-1).square().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (gradients[0] * (2 * x.shape[-1] / x.numel()))
