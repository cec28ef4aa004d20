"""A ReLU SAE whose features are too active for sparse execution: five matrix products, and few passes over what they make.

Left to autograd it takes six, for the gradient of the centred tokens is a product of its own, of which only the sum over
tokens is wanted; and some ten passes over [tokens, d_sae]. Here these are made a few tokens at a time, in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Entries of [tokens, d_sae] that are computed at once.
CHUNK = 1 << 21


@dataclass(frozen=True)
class ReluBlock:
    """Tokens with the features that they may use: those of one band, or, without bands, all.

    Attributes:
        rows: of the batch's position axis.
        pieces: the features, as ranges of d_sae.
        closed: True where the mask keeps a feature from firing, shape [p, w]; None if it does so nowhere.
        band: which decoder bias the tokens have, if there are several.
    """

    rows: slice
    pieces: tuple[slice, ...]
    closed: Bool[Tensor, "p w"] | None
    band: int

    @property
    def width(self) -> int:
        """Features that a token may use."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Each piece, and where it is in the block's own order."""
        start = 0
        for piece in self.pieces:
            yield piece, slice(start, start + piece.stop - piece.start)
            start += piece.stop - piece.start


@dataclass(frozen=True)
class ReluOutput:
    """What a batch gives.

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
    blocks: Sequence[ReluBlock],
) -> ReluOutput:
    """``relu((x - bias) @ W_enc + b_enc) @ W_dec + bias``, each block by its own features and its own bias.

    Args:
        x: tokens, less their decoder bias; no gradient goes to them.
        W_enc, b_enc, W_dec: encoder and decoder; they learn from residual and activity.
        biases: the decoder biases; those subtracted from x, and those of the reconstruction.
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
        blocks: tuple[ReluBlock, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows_of = W_enc.T
        # However x lies in memory, chunks of this must be views, for they are written to.
        residual, activity = x.new_empty(x.shape), x.new_zeros(())
        fired = torch.zeros(len(b_enc), dtype=torch.int64, device=x.device)
        kept: list[Tensor] = []
        for block, some in _chunks(x, blocks):
            own = x[some].flatten(0, 1)
            acts = x.new_empty(len(own), block.width)
            for piece, place in block.places():
                torch.addmm(b_enc[piece], own, rows_of[piece].T, out=acts[:, place])
            acts.relu_()
            if block.closed is not None:
                closed = block.closed[some.start - block.rows.start : some.stop - block.rows.start, None]
                acts.view(*x[some].shape[:2], block.width).masked_fill_(closed, 0.0)
            activity += acts.sum()
            # Counted as float32, in which whole numbers of this size are exact: a sum of truth values takes five times as long.
            counts = torch.gt(acts, 0, out=torch.empty_like(acts, dtype=torch.float32)).sum(dim=0).long()
            left = residual[some].flatten(0, 1).copy_(own)
            for piece, place in block.places():
                left.addmm_(acts[:, place], W_dec[piece], alpha=-1.0)
                fired[piece] += counts[place]
            kept.append(acts)
        ctx.save_for_backward(W_enc, W_dec, x, *kept)
        ctx.blocks, ctx.n_biases = blocks, len(biases)
        ctx.mark_non_differentiable(fired)
        return residual, activity, fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W_enc, W_dec, x, *kept = ctx.saved_tensors
        to_residual, to_activity = gradients[0].contiguous(), gradients[1]
        to_rows, to_W_dec = torch.zeros_like(W_dec), torch.zeros_like(W_dec)
        to_b_enc = x.new_zeros(ctx.n_biases, len(W_dec))
        to_biases = x.new_zeros(ctx.n_biases, x.shape[2])
        for (block, some), acts in zip(_chunks(x, ctx.blocks), kept, strict=True):
            own, wrong = x[some].flatten(0, 1), to_residual[some].flatten(0, 1)
            to_biases[block.band] -= wrong.sum(dim=0)
            to_acts = torch.empty_like(acts)
            for piece, place in block.places():
                torch.addmm(to_activity, wrong, W_dec[piece].T, alpha=-1.0, out=to_acts[:, place])
            # What is not active, a closed feature among it, has no gradient.
            torch.ops.aten.threshold_backward.grad_input(to_acts, acts, 0, grad_input=to_acts)
            sums = to_acts.sum(dim=0)
            for piece, place in block.places():
                to_rows[piece].addmm_(to_acts[:, place].T, own)
                to_W_dec[piece].addmm_(acts[:, place].T, wrong, alpha=-1.0)
                to_b_enc[block.band, piece] += sums[place]
        to_biases -= to_b_enc @ W_enc.T
        return to_rows.T, to_b_enc.sum(dim=0), to_W_dec, to_biases, None, None


def _chunks(x: Float[Tensor, "P n d_in"], blocks: Sequence[ReluBlock]) -> Iterator[tuple[ReluBlock, slice]]:
    """Whole positions of one block, a few at a time."""
    for block in blocks:
        step = max(1, CHUNK // (x.shape[1] * block.width))
        for first in range(block.rows.start, block.rows.stop, step):
            yield block, slice(first, min(first + step, block.rows.stop))
