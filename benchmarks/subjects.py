"""Ours, as functions that take one training step, and batches with the structure that SAEs are made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from scansion.sae import (
    SAE,
    BatchTopKConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SAEConfig,
    TopKConfig,
    TSAEConfig,
    build_sae,
    n_previous,
)
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


@dataclass(frozen=True)
class Subject:
    """An SAE of ours to be trained.

    Attributes:
        kind: relu, jumprelu, topk, batch_topk, matryoshka or tsae.
        d_in, d_sae, k: sizes.
        mask: see :func:`mask_config`.
        dense: by the dense form that every faster way is tested against.
        n_positions: context length; batches hold equally many tokens of each.
        seed: of the initial weights.
        device: where it is trained.
        precision: of its products.
    """

    kind: str
    d_in: int
    d_sae: int
    k: int
    mask: str = "none"
    dense: bool = False
    n_positions: int = POSITIONS
    seed: int = 0
    device: str = "cpu"
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"

    def config(self) -> SAEConfig:
        """Its architecture and mask."""
        masked = mask_config(self.mask)
        made: dict[str, Callable[[], SAEConfig]] = {
            "relu": lambda: ReluConfig(d_sae=self.d_sae, mask=masked),
            "jumprelu": lambda: JumpReluConfig(d_sae=self.d_sae, mask=masked),
            "topk": lambda: TopKConfig(d_sae=self.d_sae, k=self.k, mask=masked),
            "batch_topk": lambda: BatchTopKConfig(d_sae=self.d_sae, k=self.k, mask=masked),
            "matryoshka": lambda: MatryoshkaConfig(d_sae=self.d_sae, k=self.k, mask=masked),
            "tsae": lambda: TSAEConfig(d_sae=self.d_sae, k=self.k, mask=masked),
        }
        return made[self.kind]()

    def learner(self) -> Learner:
        """It, at the start of its training."""
        sae = build_sae(self.config(), self.d_in, self.n_positions, torch.Generator().manual_seed(self.seed))
        training = TrainingConfig(tokens=TOKENS, device=self.device, precision=self.precision)
        return Learner(sae.to(self.device), training, TOKENS // 2048, "dense" if self.dense else None)

    def step(self) -> Step:
        """Whole steps of its training, metrics and counts of dead features included, on batches on its device."""
        learner = self.learner()

        def step(x: Tensor) -> None:
            learner.advance(positioned(x, learner.sae))

        return step


def positioned(x: Tensor, sae: SAE) -> PositionedBatch:
    """Tokens, [n_tokens, d_in], as equally many of each position; each with those before it that the SAE learns from."""
    n_positions = sae.mask.n_positions
    rows = x.view(n_positions, -1, x.shape[1])
    previous = tuple(rows[:-back] for back in range(1, 1 + n_previous(sae.config)))
    return PositionedBatch(rows, torch.arange(n_positions, device=x.device), previous)


def batch(n_tokens: int, d_in: int, seed: int) -> Tensor:
    """Sums of 30 of 2000 directions each, at unit mean norm, [n_tokens, d_in]."""
    directions = torch.randn(2000, d_in, generator=torch.Generator().manual_seed(0)) / d_in**0.5
    generator = torch.Generator().manual_seed(1 + seed)
    chosen = torch.randint(2000, (n_tokens, 30), generator=generator)
    weights = torch.zeros(n_tokens, 2000).scatter_(1, chosen, torch.rand(n_tokens, 30, generator=generator))
    x = weights @ directions
    return x / x.norm(dim=1).mean()
