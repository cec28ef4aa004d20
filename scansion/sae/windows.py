"""Windows: each token with those before it in its context, as a crosscoder over a window reads them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.errors import ShapeError

FIRST = 1
"""The first position that is in the windows of others: position 0, the attention sink, is in its own alone."""


def windows_of(
    x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."], window: int
) -> Float[Tensor, "*batch d_read"]:
    """Each token, then the one before it, and so on; zeros where the context has no such token, or it is at position 0.

    The tokens before are looked for along the axis on which positions follow one another, wherever that is.

    Args:
        x: activations, in which every token has those before it, from position 1 on.
        positions: of each, broadcasting against the leading axes.
        window: number of tokens in a window.

    Raises:
        ShapeError: some token is given without the one before it.
    """
    positions = positions.expand(x.shape[:-1])
    axis = _axis_of_contexts(positions)
    parts = [x]
    for back in range(1, window):
        before = torch.zeros_like(x)
        n = x.shape[axis] - back
        if n > 0:
            before.narrow(axis, back, n).copy_(x.narrow(axis, 0, n))
        parts.append(torch.where((positions >= FIRST + back)[..., None], before, 0.0))
    return torch.cat(parts, dim=-1)


def windows_of_batch(batch: PositionedBatch, window: int) -> PositionedBatch:
    """The same for a batch of a store, whose columns are contexts, or of a stream, which has the tokens before.

    Raises:
        ShapeError: a batch of a stream that was built without the tokens before.
    """
    if batch.previous is None:
        return PositionedBatch(windows_of(batch.x, batch.token_positions, window), batch.positions)
    n_needed = min(window, len(batch.positions)) - 1
    if len(batch.previous) < n_needed:
        raise ShapeError(
            f"windows of {window} tokens need the {n_needed} tokens before each one, and this batch has {len(batch.previous)}: "
            f"ActivationStream(n_previous={n_needed})"
        )
    parts = [batch.x]
    for back in range(1, window):
        before = torch.zeros_like(batch.x)
        if back < len(batch.positions):
            inside = (batch.positions[back:] >= FIRST + back)[:, None, None]
            before[back:] = torch.where(inside, batch.previous[back - 1], 0.0)
        parts.append(before)
    return PositionedBatch(torch.cat(parts, dim=-1), batch.positions, ())


def _axis_of_contexts(positions: Int[Tensor, "*batch"]) -> int:
    """The axis along which every token follows the one before it."""
    fitting = [axis for axis in range(positions.ndim) if bool(_follows(positions, axis).all())]
    if not fitting:
        raise ShapeError(
            f"a crosscoder over a window reads each token with those before it, and here some are missing; positions of shape "
            f"{list(positions.shape)} should count up from 0 or 1 along one axis (generating text: use_cache=False)"
        )
    return fitting[0]


def _follows(positions: Int[Tensor, "*batch"], axis: int) -> Bool[Tensor, "*batch"]:
    """Whether each token needs none before it, or has it there."""
    needs_none = positions <= FIRST
    if positions.shape[axis] == 0:
        return needs_none
    first = needs_none.narrow(axis, 0, 1)
    n = positions.shape[axis] - 1
    rest = needs_none.narrow(axis, 1, n) | (positions.narrow(axis, 1, n) == positions.narrow(axis, 0, n) + 1)
    return torch.cat([first, rest], dim=axis)
