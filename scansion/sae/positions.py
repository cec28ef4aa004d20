"""The positions of a tensor of activations: those given, or those that follow from its shape without a guess."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.errors import ShapeError


def positions_for(
    x: Float[Tensor, "*batch d"], positions: Int[Tensor, "..."] | None, why: str | None
) -> Int[Tensor, "..."]:
    """Positions that broadcast against the leading axes of ``x``. They may be left out for [L, d], or without ``why``.

    Args:
        x: activations.
        positions: None to leave them out.
        why: why the SAE needs them, for the error; None if it treats all positions alike.

    Raises:
        ShapeError: positions are missing, or do not broadcast.
    """
    leading = x.shape[:-1]
    if positions is None:
        if why is None:
            return torch.zeros((1,) * len(leading), dtype=torch.int64, device=x.device)
        if len(leading) != 1:
            raise ShapeError(
                f"positions are needed: {why}, and a "
                f"tensor of shape {list(x.shape)} does not say which axis is the context. Give positions that "
                f"broadcast to {list(leading)} (for [batch, L, d]: torch.arange(L)), or the PositionedBatch that "
                "store.contexts() returns"
            )
        return torch.arange(leading[0], device=x.device)
    try:
        fits = torch.broadcast_shapes(positions.shape, leading) == leading
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(f"positions should broadcast to {list(leading)} but have shape {list(positions.shape)}")
    return positions
