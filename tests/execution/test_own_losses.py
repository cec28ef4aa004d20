"""Losses of an architecture of one's own count on every way, whatever they read of the forward pass."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import selection
from scansion.masks.base import MaskConfig
from scansion.sae import SAE, ForwardPass, ReluConfig, ReluSAE, TopKConfig, TopKSAE
from tests.execution.test_sparse import MASKS, SOME_DEAD
from tests.masks.families import D_IN, D_SAE, EVERYWHERE, FAMILIES, L, some_x

EVERY_MASK: dict[str, MaskConfig] = {**FAMILIES, **MASKS}
WAYS = ["sparse", "fused", "banded"]


class Constant(ReluSAE):
    """Losses that read nothing."""

    def sparsity_loss(self, forward: ForwardPass) -> torch.Tensor:
        return torch.tensor(5.0)

    def auxiliary_loss(self, forward: ForwardPass, dead: torch.Tensor) -> torch.Tensor:
        return torch.tensor(7.0)


class ReadsEverything:
    """Losses that read every activation and pre-activation, their gradient included."""

    seen = 0

    def sparsity_loss(self, forward: ForwardPass) -> torch.Tensor:
        return sum((part.acts.square().sum() for part in forward.parts), torch.zeros(())) / forward.n_tokens

    def auxiliary_loss(self, forward: ForwardPass, dead: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(())
        for part in forward.parts:
            found = found + (part.pre_acts.sigmoid() * part.of_features(dead)).sum() + part.pre_acts.relu().sum()
        return found / forward.n_tokens

    def reconstruction_loss(self, forward: ForwardPass) -> torch.Tensor:
        return forward.residual.abs().sum() / forward.n_tokens

    def after_forward(self, forward: ForwardPass) -> None:
        self.seen = float(sum(values.sum() for values in forward.values))


class ReluThatReads(ReadsEverything, ReluSAE):
    """On the fused and the sparse way."""


class TopKThatReads(ReadsEverything, TopKSAE):
    """On the sparse way."""


def make(kind: type[SAE], mask: MaskConfig) -> SAE:
    config = (
        TopKConfig(d_sae=D_SAE, k=5, mask=mask) if issubclass(kind, TopKSAE) else ReluConfig(d_sae=D_SAE, mask=mask)
    )
    sae = kind(config, D_IN, L, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        sae.b_dec.add_(0.1)
    return sae


def force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this way wherever the mask and the architecture have it."""
    monkeypatch.setattr(selection, "DENSITY", float(way == "sparse"))
    monkeypatch.setattr(selection, "RELU_DENSITY", float(way == "sparse"))
    if way == "banded":
        monkeypatch.setattr(ReluSAE, "fused_forward", SAE.fused_forward)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", EVERY_MASK)
def test_constant_losses_are_what_they_are(mask: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(way, monkeypatch)
    losses = make(Constant, EVERY_MASK[mask]).losses(some_x(n=7), EVERYWHERE, SOME_DEAD)
    assert (losses.sparsity.item(), losses.auxiliary.item()) == (5.0, 7.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", EVERY_MASK)
@pytest.mark.parametrize("kind", [ReluThatReads, TopKThatReads])
def test_losses_that_read_everything_are_those_of_the_dense_form(kind, mask: str, way: str, monkeypatch) -> None:
    force(way, monkeypatch)
    fast, dense = (make(kind, EVERY_MASK[mask]) for _ in range(2))
    found = fast.losses(some_x(n=7), EVERYWHERE, SOME_DEAD)
    expected = dense.dense_losses(some_x(n=7), EVERYWHERE, SOME_DEAD)
    for name in ("reconstruction", "sparsity", "auxiliary", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")
    assert found.sparsity > 0 and fast.seen == pytest.approx(dense.seen, rel=1e-4) and dense.seen > 0
    for losses in (found, expected):
        (losses.reconstruction + losses.sparsity + losses.auxiliary).backward()
    for (name, parameter), (_, reference) in zip(fast.named_parameters(), dense.named_parameters(), strict=True):
        if reference.grad is not None:
            torch.testing.assert_close(
                parameter.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
