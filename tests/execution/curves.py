"""Losses as training computes them, the way they are told to be computed; and fifty steps of it."""

from __future__ import annotations

import torch

from scansion.activations import PositionedBatch
from scansion.execution.losses import training_losses
from scansion.execution.plan import Way
from scansion.masks import MaskConfig
from scansion.sae import SAE, Losses
from scansion.sae.decoder import normalise_decoder
from tests.masks.families import EVERYWHERE, make_sae, some_x


def losses_of(
    sae: SAE,
    x: torch.Tensor,
    positions: torch.Tensor,
    dead: torch.Tensor,
    previous: torch.Tensor | None = None,
    way: Way | None = None,
) -> Losses:
    """The losses of one forward pass; of the fastest way for None."""
    return training_losses(sae, PositionedBatch(x, positions, None if previous is None else (previous,)), dead, way)


def require_same_as_dense(found: Losses, expected: Losses, sae: SAE, dense: SAE) -> None:
    """Losses, what fired, gradients and buffers are those of the dense way, to rounding."""
    for name in ("reconstruction", "sparsity", "auxiliary", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(found.fired, expected.fired)
    for losses in (found, expected):
        (losses.reconstruction + 3 * losses.sparsity + losses.auxiliary).backward()
    for (name, parameter), (_, reference) in zip(sae.named_parameters(), dense.named_parameters(), strict=True):
        assert (parameter.grad is None) == (reference.grad is None)
        if reference.grad is not None:
            torch.testing.assert_close(
                parameter.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    for (name, buffer), (_, reference) in zip(sae.named_buffers(), dense.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, reference, msg=lambda m, n=name: f"{n}: {m}")


def curve_of(architecture: str, mask: MaskConfig, way: Way | None, dead: torch.Tensor) -> torch.Tensor:
    """The squared error before each of fifty steps."""
    sae = make_sae(architecture, mask).train()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    curve: list[float] = []
    for step in range(50):
        x = some_x(seed=step, n=16)
        losses = losses_of(sae, x, EVERYWHERE, dead, x[:-1] if sae.uses_pairs else None, way)
        optimiser.zero_grad()
        (losses.reconstruction + losses.sparsity + losses.auxiliary).backward()
        optimiser.step()
        normalise_decoder(sae)
        curve.append(losses.mse.item())
    return torch.tensor(curve)
