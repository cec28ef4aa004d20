"""A part of a forward pass that keeps no activations: if a loss reads them, they are computed again, with their gradient."""

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
    """The forward pass of one block, computed only when it is read.

    Args:
        sae: whose mask only blocks features.
        x: the whole batch.
        block: its tokens share one decoder bias.
        compute_acts: a faster way to the activations than from the pre-activations, if there is one.
    """
    centred: list[Tensor] = []  # computed once, when first needed

    def pre_acts(columns: Int[Tensor, "s"] | None) -> Float[Tensor, "p n s"]:
        if columns is None:
            columns = torch.arange(block.width, device=x.device)
        if not centred:
            centred.append(x[block.rows] - (sae.b_dec if sae.b_dec.ndim == 1 else sae.b_dec[block.bias]))
        names = block.named(columns)
        product = centred[0] @ sae.W_enc.T[names].T + sae.b_enc[names]
        return product if block.closed is None else product.masked_fill(block.closed[:, None, columns], -torch.inf)

    return Part(block, pre_acts, compute_acts or (lambda: sae.activate(pre_acts(None), block.features)))
