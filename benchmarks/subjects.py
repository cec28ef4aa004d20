"""Ours, as functions that take one training step, and batches with the structure that SAEs are made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from benchmarks.peers import Step
from scansion.activations import PositionedBatch
from scansion.masks import (
    AdaptiveMaskConfig,
    BandMaskConfig,
    ImportanceMaskConfig,
    MaskConfig,
    NoMaskConfig,
    RandomHardMaskConfig,
    SoftMaskConfig,
)
from scansion.sae import BatchTopKConfig, JumpReluConfig, ReluConfig, SAEConfig, TopKConfig, build_sae
from scansion.training import TrainingConfig
from scansion.training.learner import Learner

POSITIONS = 128
TOKENS = 20_000_000  # of the schedules


def mask_config(mask: str) -> MaskConfig:
    """Settings of ``none``, ``random`` (hard), ``soft``, ``importance``, ``adaptive`` (learnt), or a number of bands."""
    named = {
        "none": NoMaskConfig,
        "random": RandomHardMaskConfig,
        "soft": SoftMaskConfig,
        "importance": ImportanceMaskConfig,
        "adaptive": AdaptiveMaskConfig,
    }
    return named[mask]() if mask in named else BandMaskConfig(count=int(mask))


def sae_config(kind: str, d_sae: int, k: int, mask: str = "none") -> SAEConfig:
    """Settings of a relu, jumprelu, topk or batch_topk SAE; for ``mask``, see :func:`mask_config`."""
    masked = mask_config(mask)
    made: dict[str, Callable[[], SAEConfig]] = {
        "relu": lambda: ReluConfig(d_sae=d_sae, mask=masked),
        "jumprelu": lambda: JumpReluConfig(d_sae=d_sae, mask=masked),
        "topk": lambda: TopKConfig(d_sae=d_sae, k=k, mask=masked),
        "batch_topk": lambda: BatchTopKConfig(d_sae=d_sae, k=k, mask=masked),
    }
    return made[kind]()


def ours(
    kind: str,
    d_in: int,
    d_sae: int,
    k: int,
    mask: str = "none",
    dense: bool = False,
    n_positions: int = POSITIONS,
    seed: int = 0,
) -> Step:
    """A whole step of training, metrics and counts of dead features included; takes batches on the CPU.

    Arguments as for :func:`learner`.
    """
    trained = learner(kind, d_in, d_sae, k, mask, dense, n_positions, seed)
    positions = torch.arange(n_positions)

    def step(x: Tensor) -> None:
        trained.advance(PositionedBatch(x.view(n_positions, -1, d_in), positions))

    return step


def learner(
    kind: str,
    d_in: int,
    d_sae: int,
    k: int,
    mask: str = "none",
    dense: bool = False,
    n_positions: int = POSITIONS,
    seed: int = 0,
    device: str = "cpu",
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto",
) -> Learner:
    """An SAE that is being trained.

    Args:
        kind: relu, jumprelu, topk or batch_topk.
        d_in, d_sae, k: sizes.
        mask: see :func:`mask_config`.
        dense: by the dense form that every faster way is tested against.
        n_positions: context length; batches hold equally many tokens of each.
        seed: of the initial weights.
        device: where it is trained.
        precision: of its products.
    """
    config = sae_config(kind, d_sae, k, mask)
    sae = build_sae(config, d_in, n_positions, torch.Generator().manual_seed(seed)).to(device)
    training = TrainingConfig(tokens=TOKENS, device=device, precision=precision)
    return Learner(sae, training, TOKENS // 2048, "dense" if dense else None)


def batch(n_tokens: int, d_in: int, seed: int) -> Tensor:
    """Sums of 30 of 2000 directions each, at unit mean norm, [n_tokens, d_in]."""
    directions = torch.randn(2000, d_in, generator=torch.Generator().manual_seed(0)) / d_in**0.5
    generator = torch.Generator().manual_seed(1 + seed)
    chosen = torch.randint(2000, (n_tokens, 30), generator=generator)
    weights = torch.zeros(n_tokens, 2000).scatter_(1, chosen, torch.rand(n_tokens, 30, generator=generator))
    x = weights @ directions
    return x / x.norm(dim=1).mean()
