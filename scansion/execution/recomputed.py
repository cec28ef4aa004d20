"""A part of a forward pass that keeps no activations: if a loss reads them, they are computed again, with their gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.blocks import Block
from scansion.masks.application import mask_pre_acts
from scansion.sae.base import SAE
from scansion.sae.forward import Part


def recomputed_part(
    sae: SAE,
    x: Float[Tensor, "P n d_in"],
    positions: Int[Tensor, "P"],
    block: Block,
    compute_acts: Callable[[], Float[Tensor, "p n w"]] | None = None,
) -> Part:
    """The forward pass of one block, computed only when it is read.

    Args:
        sae: whose mask does not gate gradients.
        x: the whole batch.
        positions: of its rows.
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
        if block.closed is not None:
            return product.masked_fill(block.closed[:, None, columns], -torch.inf)
        return product if block.weights is None else mask_pre_acts(product, block.weights[:, None, columns])

    def acts() -> Float[Tensor, "p n w"]:
        if block.weights is None:
            return sae.activate(pre_acts(None), block.features)
        return sae.masked_acts(x[block.rows], positions[block.rows, None]).acts

    return Part(block, pre_acts, compute_acts or acts)
