"""What a training forward pass hands to an architecture's losses, whichever way it was computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.blocks import Block


@dataclass(frozen=True)
class Losses:
    """What one training forward pass yields. Scalars are means over tokens, in units of the SAE's (scaled) input.

    Attributes:
        reconstruction: squared error summed over d_in; the mean over its reconstructions for an architecture that makes
            several.
        sparsity: the architecture's penalty with its coefficient; 0 where sparsity is by construction.
        auxiliary: what keeps features alive, with its coefficient; 0 where nothing does.
        residual: x - x_hat.
        fired: tokens each feature fired on.
        way: how the forward pass was computed: see :mod:`scansion.execution.plan`.
    """

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    residual: Float[Tensor, "P n d_in"]
    fired: Int[Tensor, "d_sae"]
    way: str

    @property
    def mse(self) -> Float[Tensor, ""]:
        """Squared error of the whole reconstruction, without a gradient."""
        return squared_norm(self.residual.detach())


@dataclass(frozen=True, eq=False)
class Part:
    """A block of a batch as the forward pass computed it.

    A fast way does not compute all pre-activations and activations. If a loss reads them, they are computed then, with
    their gradient: a loss never has to know which way was taken.

    Attributes:
        block: which tokens, and which features they may use.
        compute_pre_acts: pre-activations in these of the block's columns; in all for None.
        compute_acts: activations of all w features.
    """

    block: Block
    compute_pre_acts: Callable[[Int[Tensor, "s"] | None], Float[Tensor, "p n s"]] = field(repr=False)
    compute_acts: Callable[[], Float[Tensor, "p n w"]] = field(repr=False)

    @classmethod
    def computed(cls, block: Block, pre_acts: Float[Tensor, "p n w"], acts: Float[Tensor, "p n w"]) -> Part:
        """A part whose pre-activations and activations are all there."""
        return cls(block, lambda columns: pre_acts if columns is None else pre_acts[..., columns], lambda: acts)

    @cached_property
    def pre_acts(self) -> Float[Tensor, "p n w"]:
        """Before the activation function; minus infinity where the mask does not let a feature train."""
        return self.compute_pre_acts(None)

    @cached_property
    def acts(self) -> Float[Tensor, "p n w"]:
        """After the activation function."""
        return self.compute_acts()

    def pre_acts_of(self, columns: Int[Tensor, "s"]) -> Float[Tensor, "p n s"]:
        """Pre-activations in these of the block's columns: cheaper than all of them."""
        return self.compute_pre_acts(columns)


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One training forward pass, as an architecture's losses read it; the same whichever way computed it.

    Attributes:
        x: the batch, grouped by position.
        positions: of each row of ``x``, ascending.
        residual: x - x_hat.
        parts: together all of the batch.
        fired: tokens each feature fired on.
        previous: for each row of ``x`` but the first, the token before each of its tokens; None unless the SAE
            ``uses_pairs``.
        previous_acts: the activations of ``previous``, from a way that has them.
        decoder_weights: the mask's weights, where it gates the gradient of the decoder; there is one part then.
        order: None, or where tokens were sorted (then P is all tokens and n is 1), which token of the batch each row is.
        nested: x less what the features up to each level but the last decode to, from a way that has it; see
            :meth:`scansion.sae.SAE.levels`.
        known_activity: :attr:`activity` from a way that has it without the activations.
        known_values: :attr:`values` from such a way.
        known_count: how many activations are above 0, with a gradient to the thresholds that they exceed, from a way that
            has it; see :class:`scansion.sae.structure.KeepsAbove`.
    """

    x: Float[Tensor, "P n d_in"]
    positions: Int[Tensor, "P"]
    residual: Float[Tensor, "P n d_in"]
    parts: Sequence[Part]
    fired: Int[Tensor, "d_sae"]
    previous: Float[Tensor, "P_less_1 n d_in"] | None = None
    previous_acts: Float[Tensor, "P_less_1 n d_sae"] | None = None
    decoder_weights: Float[Tensor, "P 1 d_sae"] | None = None
    order: Int[Tensor, "P"] | None = None
    nested: Float[Tensor, "levels_less_1 P n d_in"] | None = None
    known_activity: Float[Tensor, ""] | None = None
    known_values: Float[Tensor, "nnz"] | None = None
    known_count: Float[Tensor, ""] | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens in the batch, P x n."""
        return self.x.shape[0] * self.x.shape[1]

    def residual_like(self, x: Float[Tensor, "P n d_in"]) -> Float[Tensor, "P n d_in"]:
        """The residual with its tokens where those of the batch ``x`` are."""
        if self.order is None:
            return self.residual
        return torch.zeros_like(x).flatten(0, 1).index_copy(0, self.order, self.residual[:, 0]).view_as(x)

    @cached_property
    def activity(self) -> Float[Tensor, ""]:
        """The sum of all activations, which every way has without computing each of them."""
        if self.known_activity is not None:
            return self.known_activity
        return sum_over(part.acts for part in self.parts)

    @property
    def values(self) -> list[Float[Tensor, "..."]]:
        """Every activation above 0, without a gradient, in tensors of any shape; some zeros may be among them."""
        if self.known_values is not None:
            return [self.known_values.detach()]
        return [part.acts.detach() for part in self.parts]


def count_fired(parts: Iterable[Part], d_sae: int) -> Int[Tensor, "d_sae"]:
    """Tokens each feature fires on."""
    fired: Tensor | None = None
    for part in parts:
        fired = part.acts.new_zeros(d_sae, dtype=torch.int64) if fired is None else fired
        fired[slice(None) if part.block.features is None else part.block.features] += (part.acts > 0).sum(dim=(0, 1))
    return torch.zeros(d_sae, dtype=torch.int64) if fired is None else fired


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
