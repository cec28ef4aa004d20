"""Sparse execution: decoder and every weight gradient from the active entries; only the encoder product is dense."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution import operations
from scansion.execution.backends import choose
from scansion.execution.operations import dots_at_entries, sum_of_rows, sum_per_position
from scansion.execution.precision import operand


@dataclass(frozen=True)
class SparseActs:
    """The selected entries of a matrix [T, d_sae] of activations, token by token. Some may be 0, which changes no result.

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

    @classmethod
    def from_row_counts(
        cls, features: Int[Tensor, "nnz"], values: Float[Tensor, "nnz"], counts: Int[Tensor, "T"], d_sae: int
    ) -> SparseActs:
        """Build from entries sorted by token, and the number of entries of each token."""
        ends = counts.cumsum(0)
        return cls(features, values, torch.cat([ends.new_zeros(1), ends]), d_sae)

    @cached_property
    def tokens(self) -> Int[Tensor, "nnz"]:
        """The token of each entry."""
        return operations.tokens_of(self.offsets, len(self.values))

    @cached_property
    def by_feature(self) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]]:
        """Entries grouped by feature, as :func:`operations.group` returns them."""
        return operations.group(self.features, self.offsets, self.values, self.d_sae)

    def with_values(self, values: Float[Tensor, "nnz"]) -> SparseActs:
        """The same entries with other values; the cached order of the entries is kept."""
        other = SparseActs(self.features, values, self.offsets, self.d_sae)
        other.__dict__.update({name: self.__dict__[name] for name in ("tokens", "by_feature") if name in self.__dict__})
        return other

    def fired(self) -> Int[Tensor, "d_sae"]:
        """Tokens each feature fires on."""
        return operations.fired(self.features, self.values, self.d_sae)


@dataclass(frozen=True, eq=False)
class EntryGate:
    """The weights of a mask, at the entries that it lets in.

    Attributes:
        weights: of all positions, with their gradient.
        per_position: tokens at each position.
        let_in: None if the values of the entries were multiplied by the weights. Else the weights learn straight through
            (see :func:`scansion.masks.application.straight_through`), and these are the entries that were closed and would
            have been selected without the mask, with the values they would have.
    """

    weights: Float[Tensor, "P d_sae"]
    per_position: int
    let_in: SparseActs | None

    def at(self, entries: SparseActs) -> Float[Tensor, "nnz"]:
        """The weight of each entry."""
        return self.weights.detach()[entries.tokens // self.per_position, entries.features]

    def sum(self, values: Float[Tensor, "nnz"], entries: SparseActs) -> Float[Tensor, "P d_sae"]:
        """The sum of the entries' values for each feature at each position."""
        return sum_per_position(values, entries.by_feature, self.per_position, len(self.weights))


def reconstruct(
    entries: SparseActs,
    x: Float[Tensor, "T d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    biases: Float[Tensor, "n_biases d_in"],
    bias_of_token: Int[Tensor, "T"] | None,
    gate: EntryGate | None = None,
) -> tuple[SparseActs, Float[Tensor, "T d_in"]]:
    """The same entries with a gradient to the encoder, and the residual of the reconstruction ``acts @ W_dec + bias``.

    Args:
        entries: selected from ``(x - bias) @ W_enc + b_enc``.
        x: the tokens, already less their decoder bias.
        W_enc, b_enc, W_dec: encoder and decoder.
        biases: the decoder biases; their gradient comes from the reconstruction and from the subtraction from x.
        bias_of_token: index of the bias that was subtracted from each token; None if there is only one.
        gate: for a mask with weights, which get a gradient too.
    """
    weights = None if gate is None else gate.weights
    values, residual = _Reconstruct.apply(
        W_enc, b_enc, W_dec, biases, weights, x.contiguous(), entries, bias_of_token, gate
    )
    return entries.with_values(values), residual


def reconstruct_nested(
    entries: SparseActs,
    levels: Int[Tensor, "d_sae"],
    n_levels: int,
    x: Float[Tensor, "T d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    biases: Float[Tensor, "n_biases d_in"],
    bias_of_token: Int[Tensor, "T"] | None,
    gate: EntryGate | None = None,
) -> tuple[SparseActs, Float[Tensor, "n_levels T d_in"]]:
    """As :func:`reconstruct`, with the residual of the features up to each level.

    Each token is taken once for each level, with that level's entries: as many entries as without levels, in all products.

    Args:
        levels: of each feature, from 0.
        n_levels: number of levels.
    """
    T = len(x)
    order = levels[entries.features].int().argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    spread = _spread(entries, order, levels, n_levels)
    if gate is not None:
        let_in = gate.let_in
        if let_in is not None:
            closed = levels[let_in.features].int().argsort(stable=True)
            let_in = _spread(let_in, closed, levels, n_levels)
        gate = EntryGate(gate.weights.repeat(n_levels, 1), gate.per_position, let_in)
    of_taken = None if bias_of_token is None else bias_of_token.repeat(n_levels)
    taken, parts = reconstruct(spread, x.repeat(n_levels, 1), W_enc, b_enc, W_dec, biases, of_taken, gate)
    # The sum over levels has the token, and through it the decoder bias, once for each of them.
    without_value = biases.detach() - biases
    token = x + (without_value if bias_of_token is None else without_value[bias_of_token])
    others = torch.arange(n_levels, device=x.device, dtype=x.dtype)[:, None, None]
    residuals = parts.unflatten(0, (n_levels, T)).cumsum(0) - others * token
    return entries.with_values(taken.values[back]), residuals


def _spread(entries: SparseActs, order: Tensor, levels: Tensor, n_levels: int) -> SparseActs:
    """Entries in this order, by level and token, of as many times the tokens as there are levels."""
    n_tokens, features = len(entries.offsets) - 1, entries.features[order]
    counts = operations.count(levels[features] * n_tokens + entries.tokens[order], n_levels * n_tokens)
    return SparseActs.from_row_counts(features, entries.values[order], counts, entries.d_sae)


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        biases: Tensor,
        weights: Tensor | None,
        x: Tensor,
        entries: SparseActs,
        bias_of_token: Tensor | None,
        gate: EntryGate | None,
    ) -> tuple[Tensor, Tensor]:
        decoder = operand(W_dec)
        ctx.save_for_backward(W_enc, decoder, x.to(decoder.dtype))
        ctx.entries, ctx.bias_of_token, ctx.n_biases, ctx.gate = entries, bias_of_token, len(biases), gate
        ctx.set_materialize_grads(False)
        residual = operations.decode(x, entries.offsets, entries.features, entries.values, decoder)
        return entries.values.clone(), residual

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        W_enc, W_dec, x = ctx.saved_tensors
        entries: SparseActs = ctx.entries
        to_residual = W_enc.new_zeros(x.shape) if gradients[1] is None else gradients[1].contiguous()
        read = to_residual.to(x.dtype)
        gate: EntryGate | None = ctx.gate
        factors = gate.at(entries) if gate is not None and gate.let_in is None else None
        backward = choose("sparse_backward", _sparse_backward, W_dec, x, read)
        to_W_dec, to_rows, to_b_enc, to_values = backward(entries, gradients[0], W_dec, x, read, factors)
        to_weights = None if gate is None else _to_weights(gate, to_values, factors, entries, W_dec, read)
        if ctx.bias_of_token is None:
            sums, to_biases = to_b_enc[None], -to_residual.sum(dim=0, keepdim=True)
        else:
            cells = entries.features + ctx.bias_of_token[entries.tokens] * entries.d_sae
            sums = operations.sum_into(cells, to_values, ctx.n_biases * entries.d_sae)
            sums = sums.view(ctx.n_biases, entries.d_sae)
            to_biases = -operations.sum_into(ctx.bias_of_token, to_residual, ctx.n_biases)
        rows = W_enc.T
        to_biases -= operations.weighted_sum(sums[0], rows) if len(sums) == 1 else sums @ rows
        return to_rows.T, to_b_enc, to_W_dec, to_biases, to_weights, None, None, None, None


def _to_weights(
    gate: EntryGate, to_values: Tensor, factors: Tensor | None, entries: SparseActs, W_dec: Tensor, to_residual: Tensor
) -> Tensor:
    """The gradient of a mask's weights, from that of the entries' values."""
    if factors is not None:
        # An entry was its value over its weight before the mask; if its weight is 0, it was not let in.
        return gate.sum((to_values * entries.values / factors).where(entries.values > 0, 0.0), entries)
    closed = gate.let_in
    assert closed is not None, "weights multiply, or learn straight through"
    dots = dots_at_entries(to_residual, W_dec, closed.offsets, closed.tokens, closed.features)
    return gate.sum(to_values * entries.values, entries) - gate.sum(dots * closed.values, closed)


def _sparse_backward(
    entries: SparseActs,
    to_acts: Tensor | None,
    W_dec: Tensor,
    x: Tensor,
    to_residual: Tensor,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Torch's version of :func:`scansion.execution.cpu.native.sparse_backward`.

    Args:
        factors: what each value was multiplied by after the encoder; None for 1.
    """
    # The residual is x minus the reconstruction, so signs change. They are changed in the nnz values, the smallest tensors.
    to_values = dots_at_entries(to_residual, W_dec, entries.offsets, entries.tokens, entries.features).neg_()
    if to_acts is not None:
        to_values += to_acts
    to_values *= entries.values > 0
    order, tokens, offsets = entries.by_feature
    to_W_dec = sum_of_rows(tokens, to_residual, offsets, entries.values[order].neg_())
    to_pre_acts = to_values if factors is None else to_values * factors
    to_rows = sum_of_rows(tokens, x, offsets, to_pre_acts[order])
    to_b_enc = operations.sum_per_feature(to_pre_acts, order, offsets)
    return to_W_dec, to_rows, to_b_enc, to_values
