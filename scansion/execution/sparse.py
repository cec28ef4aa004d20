"""The sparse way: everything but the encoder product from the active entries alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.execution.blocks import Block, blocks_of, whole_block
from scansion.execution.encoder import Encoder
from scansion.execution.plan import open_ways
from scansion.execution.precision import operand
from scansion.execution.recomputed import recomputed_part
from scansion.execution.selection import select_largest, select_positive, select_top_k
from scansion.execution.sparse_acts import EntryGate, SparseActs, reconstruct, reconstruct_nested
from scansion.readings import to_device
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass
from scansion.sae.structure import KeepsAbove, KeepsPositive, KeepsTopK, KeepsTopKOfBatch, Selection
from scansion.shapes import require_shape


def sparse_forward(sae: SAE, batch: PositionedBatch, blocks: Sequence[Block], share: float = 1.0) -> ForwardPass | None:
    """A training forward pass from the active entries alone.

    Args:
        sae: with a :meth:`SAE.selection`, and a mask that does not gate gradients.
        batch: grouped by position.
        blocks: of the batch.
        share: largest share of entries that may be positive, for an architecture that keeps all positive ones.

    Returns:
        None if more are positive.
    """
    x, positions = batch.x, batch.positions
    blocks = [block for block in blocks if block.n_rows > 0]
    selected = _selected(sae, x, positions, blocks, share)
    if selected is None:
        return None
    entries, let_in, of_parameters = selected
    if sae.n_levels == 1:
        entries, residual = reconstruct(entries, *of_parameters)
        nested = None
    else:
        levels = to_device(sae.levels(), x.device)
        entries, residuals = reconstruct_nested(entries, levels, sae.n_levels, *of_parameters)
        residual, nested = residuals[-1], residuals[:-1].unflatten(1, x.shape[:2])
    if let_in is None:
        parts = [
            recomputed_part(sae, x, positions, block, partial(_acts_of, entries, block, x.shape[1])) for block in blocks
        ]
    else:  # entries that the rounded mask closes have a gradient as well
        parts = [recomputed_part(sae, x, positions, block) for block in blocks]
    return ForwardPass(
        x,
        positions,
        residual.view_as(x),
        parts,
        entries.fired(),
        previous_acts=_previous_acts(sae, batch),
        nested=nested,
        known_activity=entries.values.sum() if let_in is None else None,
        known_values=entries.values.detach(),
    )


class _Selected(NamedTuple):
    """The active entries of some tokens.

    Attributes:
        entries: without a gradient.
        let_in: see :func:`_let_in`.
        of_parameters: what :func:`reconstruct` takes after the entries.
    """

    entries: SparseActs
    let_in: SparseActs | None
    of_parameters: tuple[Any, ...]


def _selected(
    sae: SAE, x: Float[Tensor, "P n d_in"], positions: Int[Tensor, "P"], blocks: Sequence[Block], share: float
) -> _Selected | None:
    selection = sae.selection()
    assert selection is not None, "the plan allows the sparse way only where there is a selection"
    centred = (x - sae.bias_at(positions[:, None])).detach()
    with torch.no_grad():
        W_enc = operand(sae.W_enc)
        encoder = Encoder(centred.to(W_enc.dtype), W_enc.T, sae.b_enc.detach().to(W_enc.dtype), blocks)
        entries = _select(encoder, selection, share)
        if entries is None:
            return None
        let_in = _let_in(encoder, selection, share)
    weights = blocks[0].weights if blocks else None
    gate = None if weights is None else EntryGate(weights, x.shape[1], let_in)
    biases = sae.b_dec.view(-1, sae.d_read)
    bias_of_token = None if len(biases) == 1 else sae.mask.band_at(positions).repeat_interleave(x.shape[1])
    parameters = sae.W_enc, sae.b_enc, sae.W_dec, biases
    return _Selected(entries, let_in, (centred.flatten(0, 1), *parameters, bias_of_token, gate))


def _previous_acts(sae: SAE, batch: PositionedBatch) -> Float[Tensor, "P_less_1 n d_sae"] | None:
    """The activations of the tokens before, with their gradient, for an SAE that learns from them."""
    if not sae.uses_pairs or not batch.previous:
        return None
    positions = batch.positions[1:] - 1
    blocks = [block for block in blocks_of(sae.mask, positions) if block.n_rows > 0]
    before = batch.previous[0]
    selected = _selected(sae, before, positions, blocks, 1.0)
    assert selected is not None, "no entry is refused"
    if selected.let_in is not None:
        return None
    entries, _ = reconstruct(selected.entries, *selected.of_parameters)
    return _acts_of(entries, whole_block(len(positions), sae.d_sae), before.shape[1])


def _select(encoder: Encoder, selection: Selection, share: float) -> SparseActs | None:
    match selection:
        case KeepsTopK(k):
            return select_top_k(encoder, k)
        case KeepsTopKOfBatch(k=k, last_place=last_place):
            return select_largest(encoder, k * encoder.n_tokens, last_place)
        case KeepsPositive():
            return select_positive(encoder, int(share * encoder.n_entries))
        case KeepsAbove():
            raise AssertionError("entries below a threshold give it a gradient: the plan does not allow the sparse way")


def _let_in(encoder: Encoder, selection: Selection, share: float) -> SparseActs | None:
    """What would be selected without the mask, for weights that learn straight through it; what it leaves open has value 0.

    None for other masks. Open entries are left out because the mask's own selection has them all: without it, they would
    compete with more.
    """
    closed = next((block.closed for block in encoder.blocks if block.weights is not None), None)
    if closed is None:
        return None
    unmasked = [replace(block, closed=None, weights=None) for block in encoder.blocks]
    entries = _select(replace(encoder, blocks=unmasked), selection, share)
    if entries is None:
        return None
    shut = closed[entries.tokens // encoder.per_position, entries.features]
    return SparseActs(entries.features, entries.values * shut, entries.offsets, entries.d_sae)


def _acts_of(entries: SparseActs, block: Block, n: int) -> Float[Tensor, "p n w"]:
    """The activations of a block as a dense tensor, from the entries of the whole batch, with their gradient."""
    start, stop = block.rows.start * n, block.rows.stop * n
    first, last = int(entries.offsets[start]), int(entries.offsets[stop])
    cells = entries.tokens[first:last] - start, entries.features[first:last]
    acts = entries.values.new_zeros(stop - start, entries.d_sae)
    # Added, not written: entries of value 0 may name the cell of another entry.
    acts = acts.index_put(cells, entries.values[first:last], accumulate=True)
    return (acts if block.features is None else acts[:, block.features]).unflatten(0, (block.n_rows, n))


@torch.no_grad()
def encode_sparse(
    sae: SAE, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None = None
) -> SparseActs | None:
    """The result of :meth:`SAE.encode` as active entries, token by token and without a gradient.

    Args:
        sae: in evaluation mode.
        x, positions: as for :meth:`SAE.encode`.

    Returns:
        None if computing only the active entries would not be faster: the architecture sets no number of active features
        per token, or the mask does more than block some.
    """
    selection = sae.selection()
    if "sparse" not in open_ways(sae) or not sae.mask.gate.only_blocks or not isinstance(selection, KeepsTopK):
        return None
    x = sae.read(x, positions)
    require_shape("x", x, "... d_in", d_in=sae.d_read)
    positions = sae.positions_of(x, positions)
    tokens = (sae.normalised(x).x - sae.bias_at(positions)).reshape(-1, 1, sae.d_read)
    block = whole_block(len(tokens), sae.d_sae)
    if sae.mask.gate.forward:
        block = replace(block, closed=~sae.mask.can_fire(positions.expand(x.shape[:-1]).reshape(-1)))
    return select_top_k(Encoder(tokens, sae.W_enc.detach().T, sae.b_enc.detach(), [block]), selection.k)
