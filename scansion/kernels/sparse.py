"""Sparse execution: decoder and every weight gradient from the active entries; only the encoder product is dense."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.kernels.rows import count, dots_at_entries, sum_of_rows


@dataclass(frozen=True)
class Entries:
    """The selected entries of a matrix [T, d_sae] of activations, token by token. Some may be 0: they count for nothing.

    Attributes:
        features: of each entry.
        values: of each entry, 0 or above.
        offsets: token t has entries offsets[t] to offsets[t + 1] (exclusive).
        d_sae: number of features.
    """

    features: Int[Tensor, "nnz"]
    values: Float[Tensor, "nnz"]
    offsets: Int[Tensor, "T_plus_1"]
    d_sae: int

    @cached_property
    def tokens(self) -> Int[Tensor, "nnz"]:
        """The token of each entry."""
        counts = self.offsets.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self.values))

    @cached_property
    def by_feature(self) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]]:
        """The order that groups entries by feature, their tokens in it, and where each feature's begin and end."""
        order = self.features.int().argsort(stable=True)  # half the time of 64 bits
        ends = count(self.features, self.d_sae).cumsum(0)
        return order, self.tokens[order], torch.cat([ends.new_zeros(1), ends])

    def with_values(self, values: Float[Tensor, "nnz"]) -> Entries:
        """The same entries with other values, what is known of their order with them."""
        other = Entries(self.features, values, self.offsets, self.d_sae)
        other.__dict__.update({name: self.__dict__[name] for name in ("tokens", "by_feature") if name in self.__dict__})
        return other

    def fired(self) -> Int[Tensor, "d_sae"]:
        """Tokens each feature fires on."""
        return count(self.features, self.d_sae, self.values > 0)


def encode_entries(
    entries: Entries,
    x: Float[Tensor, "T d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    biases: Float[Tensor, "n_biases d_in"],
    bias_of_token: Int[Tensor, "T"] | None,
) -> Entries:
    """The same entries, through which the encoder now learns.

    Args:
        entries: selected from ``(x - bias) @ W_enc + b_enc``.
        x: the tokens, already less their decoder bias.
        W_enc, b_enc: the encoder.
        biases: the decoder biases, which get the gradient that is due to them for that subtraction.
        bias_of_token: which one was subtracted from each token; None if there is only one.
    """
    _ = entries.by_feature  # found once for both gradients
    return entries.with_values(_Encode.apply(W_enc, b_enc, biases, x, entries, bias_of_token))


def residual_of_entries(
    entries: Entries,
    W_dec: Float[Tensor, "d_sae d_in"],
    x: Float[Tensor, "T d_in"],
    biases: Float[Tensor, "n_biases d_in"],
    bias_of_token: Int[Tensor, "T"] | None,
) -> Float[Tensor, "T d_in"]:
    """What the reconstruction ``acts @ W_dec + bias`` leaves, of the activations that the entries stand for.

    Args:
        entries: whose values, W_dec and biases learn.
        W_dec: the decoder.
        x, biases, bias_of_token: as for :func:`encode_entries`.
    """
    return _Residual.apply(entries.values, W_dec, biases, x, entries, bias_of_token)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_enc: Tensor,
        biases: Tensor,
        x: Tensor,
        entries: Entries,
        bias_of_token: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(W_enc, x)
        ctx.entries, ctx.bias_of_token, ctx.n_biases = entries, bias_of_token, len(biases)
        return entries.values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W_enc, x = ctx.saved_tensors
        entries: Entries = ctx.entries
        to_values = gradients[0] * (entries.values > 0)
        order, tokens, offsets = entries.by_feature
        to_W_enc = sum_of_rows(tokens, x, offsets, to_values[order]).T
        cells = entries.features
        if ctx.bias_of_token is not None:
            cells = cells + ctx.bias_of_token[entries.tokens] * entries.d_sae
        sums = to_values.new_zeros(ctx.n_biases * entries.d_sae).index_add_(0, cells, to_values)
        sums = sums.view(ctx.n_biases, entries.d_sae)
        return to_W_enc, sums.sum(dim=0), -(sums @ W_enc.T), None, None, None


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        W_dec: Tensor,
        biases: Tensor,
        x: Tensor,
        entries: Entries,
        bias_of_token: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.entries, ctx.bias_of_token, ctx.n_biases = entries, bias_of_token, len(biases)
        decoded = sum_of_rows(entries.features, W_dec, entries.offsets, values)
        return torch.sub(x, decoded, out=decoded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        # The residual falls as the reconstruction grows. Signs are turned where there are few numbers.
        entries, gradient = ctx.entries, gradients[0].contiguous()
        to_values = dots_at_entries(gradient, W_dec, entries.offsets, entries.tokens, entries.features).neg_()
        order, tokens, offsets = entries.by_feature
        to_W_dec = sum_of_rows(tokens, gradient, offsets, values[order].neg_())
        if ctx.bias_of_token is None:
            to_biases = gradient.sum(dim=0, keepdim=True)
        else:
            to_biases = gradient.new_zeros(ctx.n_biases, gradient.shape[1]).index_add_(0, ctx.bias_of_token, gradient)
        return to_values, to_W_dec, -to_biases, None, None, None
