"""Upkeep of the decoder between steps: its rows stay on the unit sphere."""

from __future__ import annotations

import torch

from scansion.execution import operations
from scansion.sae.base import SAE


@torch.no_grad()
def normalise_decoder(sae: SAE) -> None:
    """Put decoder rows back on the unit sphere."""
    operations.normalise(sae.W_dec)


@torch.no_grad()
def remove_parallel_gradient(sae: SAE) -> None:
    """Take from the decoder's gradient the part along each row, which would only change the row's norm."""
    if sae.W_dec.grad is not None:
        operations.remove_parallel(sae.W_dec, sae.W_dec.grad)
