"""The routed way: tokens are sorted by the group of features that an architecture routes them to, and computed by groups."""

from __future__ import annotations

import torch

from scansion.activations.batch import PositionedBatch
from scansion.execution.banded import banded_decode, banded_encode
from scansion.execution.blocks import Block
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass, Part, count_fired


def routed_forward(sae: SAE, batch: PositionedBatch) -> ForwardPass:
    """A training forward pass in which each token uses only the features of its group. Its rows are single tokens.

    Args:
        sae: with a :meth:`SAE.routing`, one decoder bias and a mask that does nothing.
        batch: grouped by position.
    """
    flat = batch.x.flatten(0, 1)
    routing = sae.routing(flat)
    assert routing is not None, "the plan allows the routed way only where there is a routing"
    order = routing.group.argsort(stable=True)
    weight = routing.weight[order, None, None]
    edges = torch.arange(len(routing.sizes) + 1, device=flat.device)
    cuts = torch.searchsorted(routing.group[order], edges).tolist()
    by_group = routing.group_of_feature.argsort(stable=True)
    blocks: list[Block] = []
    start = 0
    for group, size in enumerate(routing.sizes):
        features = by_group[start : start + size]
        blocks.append(Block(slice(cuts[group], cuts[group + 1]), (slice(start, start + size),), features))
        start += size
    tokens = flat[order, None]
    pre_acts = banded_encode(tokens - sae.b_dec, sae.W_enc.T[by_group].T, sae.b_enc[by_group], blocks)
    activated = sae.activate_bands(pre_acts, [block.features for block in blocks])
    acts = [act * weight[block.rows] for act, block in zip(activated, blocks, strict=True)]
    residual = tokens - banded_decode(acts, sae.W_dec[by_group], blocks) - sae.b_dec
    parts = [
        Part.computed(block, pre, act) for block, pre, act in zip(blocks, pre_acts, acts, strict=True) if block.n_rows
    ]
    positions = batch.positions.repeat_interleave(batch.x.shape[1])[order]
    return ForwardPass(tokens, positions, residual, parts, count_fired(parts, sae.d_sae), order=order)
