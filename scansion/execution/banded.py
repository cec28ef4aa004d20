"""The banded way: one small matrix product per band of positions instead of one large, mostly masked product.

With G equal bands the encoder and decoder take G times fewer operations than the dense masked form, with the same results
to rounding. The batch must be grouped by position, positions ascending.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.execution.blocks import Block
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass, Part, count_fired


def banded_forward(sae: SAE, batch: PositionedBatch, blocks: Sequence[Block]) -> ForwardPass:
    """A training forward pass by bands.

    Args:
        sae: whose mask has bands.
        batch: grouped by position.
        blocks: one for each band, those without tokens included.
    """
    x, bias = batch.x, sae.bias_at(batch.positions[:, None])
    pre_acts = banded_encode(x - bias, sae.W_enc, sae.b_enc, blocks)
    acts = sae.activate_bands(pre_acts, [block.features for block in blocks])
    residual = x - (banded_decode(acts, sae.W_dec, blocks) + bias)
    parts = [
        Part.computed(block, pre, act)
        for block, pre, act in zip(blocks, pre_acts, acts, strict=True)
        if block.n_rows > 0
    ]
    return ForwardPass(x, batch.positions, residual, parts, count_fired(parts, sae.d_sae))


def banded_encode(
    x: Float[Tensor, "P n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    blocks: Sequence[Block],
) -> list[Float[Tensor, "_ n _"]]:
    """``x @ W_enc + b_enc`` for each band: its rows, and of the columns only the shared ones and its own."""
    n_shared, sizes = _sizes(blocks)
    # split: its backward is one concatenation, while the backward of each slice would be a gradient of full size. The encoder
    # is stored feature by feature (see SAE), hence the transposes: its gradient is then stored in the same order.
    shared_W, *weights = (rows.T for rows in W_enc.T.split([n_shared, *sizes]))
    shared_b, *biases = b_enc.split([n_shared, *sizes])
    products = [
        torch.addmm(b, x[block.rows].flatten(0, 1), W).view(*x[block.rows].shape[:2], W.shape[1])
        for block, W, b in zip(blocks, weights, biases, strict=True)
    ]
    if n_shared == 0:
        return products
    common = torch.addmm(shared_b, x.flatten(0, 1), shared_W).view(*x.shape[:2], n_shared)
    return [torch.cat([common[block.rows], bound], dim=-1) for block, bound in zip(blocks, products, strict=True)]


def banded_decode(
    acts: Sequence[Float[Tensor, "_ n _"]], W_dec: Float[Tensor, "d_sae d_in"], blocks: Sequence[Block]
) -> Float[Tensor, "P n d_in"]:
    """``acts @ W_dec``, with the rows of all bands joined in order."""
    n_shared, sizes = _sizes(blocks)
    shared_W, *weights = W_dec.split([n_shared, *sizes])
    parts = [a[..., n_shared:] @ W for a, W in zip(acts, weights, strict=True)]
    if n_shared == 0:
        return torch.cat(parts)
    return torch.cat([a[..., :n_shared] for a in acts]) @ shared_W + torch.cat(parts)


def _sizes(blocks: Sequence[Block]) -> tuple[int, list[int]]:
    """The number of shared features, and how many features each band owns."""
    sizes = [block.pieces[-1].stop - block.pieces[-1].start for block in blocks]
    return blocks[0].width - sizes[0], sizes
