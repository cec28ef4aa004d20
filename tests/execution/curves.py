"""Fifty steps of training, the way they are told to be computed."""

from __future__ import annotations

import torch

from scansion.masks import MaskConfig
from scansion.sae import SAE, Losses
from scansion.sae.sparse import sparse_forward
from tests.masks.families import EVERYWHERE, make_sae, some_x


def curve_of(architecture: str, mask: MaskConfig, way: str, dead: torch.Tensor) -> torch.Tensor:
    """The squared error before each of fifty steps; ``way`` is a method of the SAE that yields losses."""
    sae = make_sae(architecture, mask).train()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    curve: list[float] = []
    for step in range(50):
        losses = getattr(sae, way)(some_x(seed=step, n=16), EVERYWHERE, dead)
        optimiser.zero_grad()
        (losses.reconstruction + losses.sparsity + losses.auxiliary).backward()
        optimiser.step()
        sae.normalise_decoder()
        curve.append(losses.mse.item())
    return torch.tensor(curve)


def sparse_losses(sae: SAE, x: torch.Tensor, positions: torch.Tensor, dead: torch.Tensor) -> Losses | None:
    """The losses of the sparse way, or None where it is not taken."""
    forward = sparse_forward(sae, x, positions)
    return None if forward is None else sae.losses_of(forward, dead)
