"""A part of a forward pass of which nothing is kept: what a loss reads of it is computed again, with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.blocks import Block
from scansion.sae.base import SAE
from scansion.sae.forward import Part


def recomputed_part(
    sae: SAE,
    x: Float[Tensor, "P n d_in"],
    block: Block,
    compute_acts: Callable[[], Float[Tensor, "p n w"]] | None = None,
) -> Part:
    """The part of a batch in a block.

    Args:
        sae: whose mask only blocks features.
        x: the whole batch.
        block: of one decoder bias.
        compute_acts: where the activations can be had without the pre-activations.
    """
    centred: list[Tensor] = []  # made once, when it is first needed

    def pre_acts(columns: Int[Tensor, "s"] | None) -> Float[Tensor, "p n s"]:
        if columns is None:
            columns = torch.arange(block.width, device=x.device)
        if not centred:
            centred.append(x[block.rows] - (sae.b_dec if sae.b_dec.ndim == 1 else sae.b_dec[block.bias]))
        names = block.named(columns)
        product = centred[0] @ sae.W_enc.T[names].T + sae.b_enc[names]
        return product if block.closed is None else product.masked_fill(block.closed[:, None, columns], -torch.inf)

    return Part(block, pre_acts, compute_acts or (lambda: sae.activate(pre_acts(None), block.features)))
