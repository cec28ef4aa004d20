"""From a planted dictionary to activations: blocks of contexts, each a pure function of seed, split and number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.synth.dictionary import PlantedDictionary

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
BLOCK_CONTEXTS = 256


@dataclass(frozen=True)
class Block:
    """Successive contexts: which true features fired, and the resulting activations."""

    fired: Bool[Tensor, "L n n_true"]
    x: Float[Tensor, "L n d_in"]


@dataclass(frozen=True, eq=False)
class PlantedData:
    """The activations of one split of a world.

    Whether features fire follows a Gaussian copula: feature i fires at position p where
    ``sqrt(rho) * g + sqrt(1 - rho) * e_i`` exceeds the normal quantile of ``1 - profiles[p, i]``, with g shared by the
    token's features of one group. Each feature keeps its own probability exactly, and those of a group fire together
    more often than by chance. Tokens are independent of one another.

    Strengths are log-normal with the configured mean and relative spread. Noise is white; its root mean square norm is
    ``noise`` times ``sqrt(mean_l0 * E[amplitude^2])``, the signal's if directions were orthogonal.

    Args:
        planted: the true features.
        split: train and held-out contexts share the features, but are drawn from separate random numbers.
    """

    planted: PlantedDictionary
    split: Split

    @property
    def n_contexts(self) -> int:
        """Contexts in the split."""
        config = self.planted.config
        return config.n_contexts if self.split == "train" else config.n_held_out_contexts

    @property
    def n_blocks(self) -> int:
        """Blocks of :data:`BLOCK_CONTEXTS` contexts; the last may be shorter."""
        return math.ceil(self.n_contexts / BLOCK_CONTEXTS)

    @cached_property
    def _thresholds(self) -> Float[Tensor, "L 1 n_true"]:
        # Minus the quantile of p is the quantile of 1 - p without the rounding; p = 0 gives infinity: never.
        return -torch.special.ndtri(self.planted.profiles)[:, None].float()

    def block(self, index: int) -> Block:
        """Block number ``index``, from 0."""
        generator, fired = self._fired(index)
        config = self.planted.config
        log_variance = math.log1p(config.amplitude_spread**2)
        amplitudes = torch.randn(fired.shape, generator=generator).mul_(math.sqrt(log_variance)).exp_()
        amplitudes *= config.amplitude_mean * math.exp(-log_variance / 2)
        x = (fired * amplitudes) @ self.planted.directions
        rms = config.amplitude_mean * math.sqrt(config.mean_l0 * (1 + config.amplitude_spread**2))
        noise = torch.randn(x.shape, generator=generator)
        return Block(fired, x + noise * (config.noise * rms / math.sqrt(config.d_in)))

    def blocks(self) -> Iterator[Block]:
        """All blocks in order."""
        return (self.block(index) for index in range(self.n_blocks))

    def firing_counts(self) -> Int[Tensor, "L n_true"]:
        """Number of firings of each feature at each position of the split: a random sample of its profile."""
        return torch.stack([self._fired(index)[1].sum(dim=1) for index in range(self.n_blocks)]).sum(dim=0)

    def _fired(self, index: int) -> tuple[torch.Generator, Bool[Tensor, "L n n_true"]]:
        config, groups = self.planted.config, self.planted.groups
        generator = config.generator(f"{self.split}/{index}")
        n = min(BLOCK_CONTEXTS, self.n_contexts - index * BLOCK_CONTEXTS)
        shared = torch.randn(config.context_length, n, int(groups.max()) + 1, generator=generator)
        hidden = torch.randn(config.context_length, n, config.n_features, generator=generator)
        hidden *= math.sqrt(1 - config.correlation)
        hidden += math.sqrt(config.correlation) * shared[..., groups]
        return generator, hidden > self._thresholds
