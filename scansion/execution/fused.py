"""The fused way, for ReLU and JumpReLU with many active features: five matrix products, and few passes over their results.

Autograd would take six products, because the gradient of the centred tokens is a product too, although only its sum over
tokens is needed (for the decoder bias); and about ten passes over [tokens, d_sae]. Here the steps between the products are
computed a few tokens at a time, in the cache; on a GPU, in one kernel each way: see :mod:`scansion.execution.activation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.execution import backends
from scansion.execution.activation import Activation, activate, activate_backward
from scansion.execution.blocks import Block
from scansion.execution.precision import add_product, operand, product
from scansion.execution.recomputed import recomputed_part
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass
from scansion.sae.structure import KeepsAbove


def fused_forward(sae: SAE, batch: PositionedBatch, blocks: Sequence[Block]) -> ForwardPass:
    """A training forward pass of an SAE that keeps entries above a threshold, whose mask does not gate gradients.

    Args:
        sae: which keeps all positive pre-activations, or those above a learnt threshold.
        batch: grouped by position.
        blocks: of the batch.
    """
    x, selection = batch.x, sae.selection()
    blocks = [block for block in blocks if block.n_rows > 0]
    centred = x - sae.bias_at(batch.positions[:, None]).detach()
    threshold = selection if isinstance(selection, KeepsAbove) else None
    biases = sae.b_dec.view(-1, sae.d_read)
    out = fused_reconstruction(centred, sae.W_enc, sae.b_enc, sae.W_dec, biases, blocks, threshold)
    parts = [recomputed_part(sae, x, batch.positions, block) for block in blocks]
    count = None if threshold is None else out.count
    return ForwardPass(
        x, batch.positions, out.residual, parts, out.fired, known_activity=out.activity, known_count=count
    )


@dataclass(frozen=True)
class FusedOutput:
    """Result of :func:`fused_reconstruction`.

    Attributes:
        residual: x - x_hat.
        activity: the sum of all activations.
        count: how many activations are above 0.
        fired: tokens each feature fired on.
    """

    residual: Float[Tensor, "P n d_in"]
    activity: Float[Tensor, ""]
    count: Float[Tensor, ""]
    fired: Int[Tensor, "d_sae"]


def fused_reconstruction(
    x: Float[Tensor, "P n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    biases: Float[Tensor, "n_biases d_in"],
    blocks: Sequence[Block],
    above: KeepsAbove | None = None,
) -> FusedOutput:
    """``activation((x - bias) @ W_enc + b_enc) @ W_dec + bias``, each block with its features, its mask and its bias.

    Args:
        x: tokens, less their decoder bias; no gradient goes to them.
        W_enc, b_enc, W_dec: encoder and decoder; their gradients come from residual and activity.
        biases: the decoder biases, each subtracted from its tokens and added to their reconstruction.
        blocks: of all tokens; a single one if it has weights, which get a gradient.
        above: the thresholds, which get a gradient, from the count too; None for a ReLU.
    """
    weights = next((block.weights for block in blocks if block.weights is not None), None)
    assert weights is None or len(blocks) == 1
    threshold, bandwidth = (None, 1.0) if above is None else (above.threshold, above.bandwidth)
    return FusedOutput(
        *_Fused.apply(W_enc, b_enc, W_dec, biases, threshold, weights, x.detach(), tuple(blocks), bandwidth)
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        biases: Tensor,
        threshold: Tensor | None,
        weights: Tensor | None,
        x: Tensor,
        blocks: tuple[Block, ...],
        bandwidth: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows_of, decoder, bias = operand(W_enc).T, operand(W_dec), b_enc.to(operand(W_enc).dtype)
        # new_empty, not empty_like: chunks are written through flatten, which makes a copy unless the memory is contiguous.
        residual, activity = x.new_empty(x.shape), x.new_zeros(())
        fired = torch.zeros(len(b_enc), dtype=torch.int64, device=x.device)
        activations: list[Activation] = []
        computed: list[Tensor] = []
        for block in _chunks(x, blocks):
            tokens = x[block.rows].flatten(0, 1)
            read = tokens.to(rows_of.dtype)
            pre_acts = read.new_empty(len(tokens), block.width)
            for piece, columns in block.columns():
                torch.addmm(bias[piece], read, rows_of[piece].T, out=pre_acts[:, columns])
            activation = _activation_of(block, x.shape[1], threshold, bandwidth)
            acts, kept, active, counts = activate(pre_acts, activation)
            activity += active
            left = residual[block.rows].flatten(0, 1).copy_(tokens)
            for piece, columns in block.columns():
                add_product(left, acts[:, columns], decoder[piece], -1.0)
                fired[piece] += counts[columns]
            activations.append(activation)
            computed += [acts, kept]
        ctx.save_for_backward(W_enc, decoder, x, *computed)
        ctx.blocks, ctx.activations, ctx.n_biases = blocks, activations, len(biases)
        ctx.mark_non_differentiable(fired)
        return residual, activity, fired.sum().to(x.dtype), fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W_enc, W_dec, x, *computed = ctx.saved_tensors
        to_residual, to_activity, to_count = gradients[0].contiguous(), gradients[1], gradients[2]
        to_rows: Tensor | None = None
        to_W_dec: Tensor | None = None
        to_b_enc = x.new_zeros(ctx.n_biases, len(W_dec))
        to_biases = x.new_zeros(ctx.n_biases, x.shape[2])
        to_threshold = x.new_zeros(len(W_dec)) if ctx.needs_input_grad[4] else None
        to_weights: list[Tensor] = []
        of_chunks = zip(_chunks(x, ctx.blocks), ctx.activations, computed[::2], computed[1::2], strict=True)
        for block, activation, acts, kept in of_chunks:
            wrong = to_residual[block.rows].flatten(0, 1)
            to_biases[block.bias] -= wrong.sum(dim=0)
            tokens, wrong = x[block.rows].flatten(0, 1).to(acts.dtype), wrong.to(acts.dtype)
            to_acts = torch.empty_like(acts)
            for piece, columns in block.columns():
                # A row, not a number, which a GPU would first write to all rows of the result.
                same = to_activity.to(acts.dtype).repeat(columns.stop - columns.start)
                torch.addmm(same, wrong, W_dec[piece].T, alpha=-1.0, out=to_acts[:, columns])
            found = activate_backward(to_acts, acts, kept, activation, to_count)
            for piece, columns in block.columns():
                to_rows = _added(to_rows, piece, found.to_pre_acts[:, columns].T, tokens, W_enc.T)
                to_W_dec = _added(to_W_dec, piece, acts[:, columns].T, -wrong, W_enc.T)
                to_b_enc[block.bias, piece] += found.sums[columns]
                if to_threshold is not None and found.to_threshold is not None:
                    to_threshold[piece] += found.to_threshold[columns]
            if found.to_weights is not None:
                to_weights.append(found.to_weights)
        to_biases -= to_b_enc @ W_enc.T
        of_weights = torch.cat(to_weights) if to_weights else None
        to_W_enc = None if to_rows is None else to_rows.T
        return to_W_enc, to_b_enc.sum(dim=0), to_W_dec, to_biases, to_threshold, of_weights, None, None, None


def _added(total: Tensor | None, piece: slice, left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """The gradient of a matrix ``like`` this, with a product added to these of its rows; None is 0.

    On a GPU, the first product is returned as it is if it has all rows: zeros and a sum would be three more passes over it.
    """
    if total is None and len(left) == len(like) and backends.returns_first_product(like.device):
        return product(left, right, like.dtype)
    total = torch.zeros_like(like) if total is None else total
    add_product(total[piece], left, right)
    return total


def _activation_of(block: Block, per_position: int, threshold: Tensor | None, bandwidth: float) -> Activation:
    weights = None if block.weights is None else block.weights.detach()
    least = None if threshold is None else block.of_features(threshold.detach())
    return Activation(per_position, block.closed, weights, least, bandwidth)


def _chunks(x: Float[Tensor, "P n d_in"], blocks: Sequence[Block]) -> Iterator[Block]:
    """Every block in parts of whole positions, each of as many entries as the device holds at a time, or one position."""
    for block in blocks:
        yield from block.split(max(1, backends.entries_at_once(x.device) // (x.shape[1] * block.width)))
