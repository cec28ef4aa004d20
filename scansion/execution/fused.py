"""The fused way, for a ReLU SAE with many active features: five matrix products, and few passes over their results.

Autograd would take six products, because the gradient of the centred tokens is a product too, although only its sum over
tokens is needed (for the decoder bias); and about ten passes over [tokens, d_sae]. Here the steps between the products are
computed a few tokens at a time, in the cache.
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
from scansion.execution.blocks import Block
from scansion.execution.precision import add_product, operand
from scansion.execution.recomputed import recomputed_part
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass


def fused_forward(sae: SAE, batch: PositionedBatch, blocks: Sequence[Block]) -> ForwardPass:
    """A training forward pass of a ReLU SAE whose mask only blocks features.

    Args:
        sae: which keeps all positive pre-activations.
        batch: grouped by position.
        blocks: of the batch.
    """
    x = batch.x
    blocks = [block for block in blocks if block.n_rows > 0]
    centred = x - sae.bias_at(batch.positions[:, None]).detach()
    out = relu_forward(centred, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec.view(-1, sae.d_in), blocks)
    parts = [recomputed_part(sae, x, block) for block in blocks]
    return ForwardPass(x, batch.positions, out.residual, parts, out.fired, known_activity=out.activity)


@dataclass(frozen=True)
class ReluOutput:
    """Result of :func:`relu_forward`.

    Attributes:
        residual: x - x_hat.
        activity: the sum of all activations.
        fired: tokens each feature fired on.
    """

    residual: Float[Tensor, "P n d_in"]
    activity: Float[Tensor, ""]
    fired: Int[Tensor, "d_sae"]


def relu_forward(
    x: Float[Tensor, "P n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    biases: Float[Tensor, "n_biases d_in"],
    blocks: Sequence[Block],
) -> ReluOutput:
    """``relu((x - bias) @ W_enc + b_enc) @ W_dec + bias``, each block with its features and its bias.

    Args:
        x: tokens, less their decoder bias; no gradient goes to them.
        W_enc, b_enc, W_dec: encoder and decoder; their gradients come from residual and activity.
        biases: the decoder biases, each subtracted from its tokens and added to their reconstruction.
        blocks: of all tokens.
    """
    return ReluOutput(*_Relu.apply(W_enc, b_enc, W_dec, biases, x.detach(), tuple(blocks)))


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        biases: Tensor,
        x: Tensor,
        blocks: tuple[Block, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows_of, decoder, bias = operand(W_enc).T, operand(W_dec), b_enc.to(operand(W_enc).dtype)
        # new_empty, not empty_like: chunks are written through flatten, which makes a copy unless the memory is contiguous.
        residual, activity = x.new_empty(x.shape), x.new_zeros(())
        fired = torch.zeros(len(b_enc), dtype=torch.int64, device=x.device)
        kept: list[Tensor] = []
        for block in _chunks(x, blocks):
            tokens = x[block.rows].flatten(0, 1)
            read = tokens.to(rows_of.dtype)
            acts = read.new_empty(len(tokens), block.width)
            for piece, columns in block.columns():
                torch.addmm(bias[piece], read, rows_of[piece].T, out=acts[:, columns])
            acts.relu_()
            if block.closed is not None:
                acts.view(-1, x.shape[1], block.width).masked_fill_(block.closed[:, None], 0.0)
            activity += acts.sum(dtype=x.dtype)
            # Counted in float32, which is exact for whole numbers up to 2^24: a sum of booleans takes five times as long.
            counts = torch.gt(acts, 0, out=torch.empty_like(acts, dtype=torch.float32)).sum(dim=0).long()
            left = residual[block.rows].flatten(0, 1).copy_(tokens)
            for piece, columns in block.columns():
                add_product(left, acts[:, columns], decoder[piece], -1.0)
                fired[piece] += counts[columns]
            kept.append(acts)
        ctx.save_for_backward(W_enc, decoder, x, *kept)
        ctx.blocks, ctx.n_biases = blocks, len(biases)
        ctx.mark_non_differentiable(fired)
        return residual, activity, fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W_enc, W_dec, x, *kept = ctx.saved_tensors
        to_residual, to_activity = gradients[0].contiguous(), gradients[1]
        to_rows, to_W_dec = torch.zeros(2, *W_dec.shape, dtype=x.dtype, device=x.device)
        to_b_enc = x.new_zeros(ctx.n_biases, len(W_dec))
        to_biases = x.new_zeros(ctx.n_biases, x.shape[2])
        for block, acts in zip(_chunks(x, ctx.blocks), kept, strict=True):
            wrong = to_residual[block.rows].flatten(0, 1)
            to_biases[block.bias] -= wrong.sum(dim=0)
            tokens, wrong = x[block.rows].flatten(0, 1).to(acts.dtype), wrong.to(acts.dtype)
            to_acts = torch.empty_like(acts)
            for piece, columns in block.columns():
                torch.addmm(to_activity.to(acts.dtype), wrong, W_dec[piece].T, alpha=-1.0, out=to_acts[:, columns])
            # What is not active, a closed feature among it, has no gradient.
            torch.ops.aten.threshold_backward.grad_input(to_acts, acts, 0, grad_input=to_acts)
            sums = to_acts.sum(dim=0, dtype=x.dtype)
            for piece, columns in block.columns():
                add_product(to_rows[piece], to_acts[:, columns].T, tokens)
                add_product(to_W_dec[piece], acts[:, columns].T, wrong, -1.0)
                to_b_enc[block.bias, piece] += sums[columns]
        to_biases -= to_b_enc @ W_enc.T
        return to_rows.T, to_b_enc.sum(dim=0), to_W_dec, to_biases, None, None


def _chunks(x: Float[Tensor, "P n d_in"], blocks: Sequence[Block]) -> Iterator[Block]:
    """Every block in parts of whole positions, each of as many entries as the device holds at a time, or one position."""
    for block in blocks:
        yield from block.split(max(1, backends.entries_at_once(x.device) // (x.shape[1] * block.width)))
