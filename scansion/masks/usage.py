"""Bands that follow usage: now and then, features move to the band where they would fire most. No gradient is used."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.masks.bands import BandMask, BandMaskConfig
from scansion.masks.registry import register_mask


class UsageBandMaskConfig(BandMaskConfig, frozen=True):
    """Settings of :class:`UsageBandMask`.

    Example:
        >>> scansion.UsageBandMaskConfig(count=4)
    """

    family: Literal["usage_bands"] = "usage_bands"  # pyright: ignore[reportIncompatibleVariableOverride]
    every: int = Field(default=25, ge=1, description="Training steps between moves of features.")
    measure_every: int = Field(
        default=5,
        ge=1,
        description="Training steps between measurements of where features would fire without the mask.",
    )
    stop: float = Field(
        default=0.6, ge=0, le=1, description="Share of the run after which features stay where they are."
    )
    decay: float = Field(default=0.8, ge=0, lt=1, description="Share of the running usage kept at each measurement.")
    stay: float = Field(
        default=0.05,
        ge=0,
        description="A feature moves only if it would fire more in another band by this share of its firing.",
    )


@register_mask(UsageBandMaskConfig)
class UsageBandMask(BandMask):
    """Bands whose features move, during training, to the band where they would fire most without a mask.

    Usage is measured with the mask lifted, on the training batch, and kept as a running mean. Each band always owns its
    fixed number of features, so the structure, and with it the fast execution, never changes.
    """

    config: UsageBandMaskConfig

    def __init__(self, config: UsageBandMaskConfig, n_positions: int, d_sae: int) -> None:
        super().__init__(config, n_positions, d_sae)
        self.usage: Float[Tensor, "n_bands d_bound"]
        self.register_buffer("usage", torch.zeros(self.n_bands, self.d_bound))
        self._last_step = 0

    def begin_step(self, step: int, n_steps: int) -> None:
        self._last_step = int(self.config.stop * n_steps)

    @property
    def reorders_features(self) -> bool:
        return True

    def wants_usage_at(self, step: int) -> bool:
        return step < self._last_step and (step + 1) % self.config.measure_every == 0

    @torch.no_grad()
    def observe(self, usage: Float[Tensor, "P d_sae"], positions: Int[Tensor, "P"]) -> None:
        band = self.band_at(positions)
        count = torch.zeros(self.n_bands, device=usage.device).index_put_(
            (band,), usage.new_ones(len(band)), accumulate=True
        )
        sums = torch.zeros_like(self.usage).index_put_((band,), usage[:, self.n_shared :], accumulate=True)
        means = sums / count.clamp_min(1)[:, None]
        self.usage.mul_(self.config.decay).add_(means, alpha=1 - self.config.decay)

    def end_step(self, step: int) -> Int[Tensor, "d_sae"] | None:
        if step >= self._last_step or (step + 1) % self.config.every:
            return None
        bound = self._assign()
        if torch.equal(bound, torch.arange(self.d_bound)):
            return None
        self.usage.copy_(self.usage[:, bound.to(self.usage.device)])
        shared = torch.arange(self.n_shared)
        return torch.cat([shared, self.n_shared + bound])

    def _assign(self) -> Int[Tensor, "d_bound"]:
        """An order of the bound features that puts each in the block of its band, and moves as few as possible.

        Features choose a band one after another: first those that would lose most if they did not get their best band.
        """
        total = self.usage.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        share = (self.usage / total).T.cpu()
        sizes = list(self._bands.sizes)
        home = torch.repeat_interleave(torch.arange(self.n_bands), torch.tensor(sizes))
        share[torch.arange(self.d_bound), home] += self.config.stay
        ranked = share.sort(dim=1, descending=True)
        regret = ranked.values[:, 0] - ranked.values[:, min(1, self.n_bands - 1)]
        preferences, homes = ranked.indices.tolist(), home.tolist()
        left, stays = sizes, [[] for _ in sizes]
        comes: list[list[int]] = [[] for _ in sizes]
        for feature in regret.argsort(descending=True, stable=True).tolist():
            band = next(choice for choice in preferences[feature] if left[choice])
            left[band] -= 1
            (stays if homes[feature] == band else comes)[band].append(feature)
        order = torch.full((self.d_bound,), -1)
        for band, (staying, coming) in enumerate(zip(stays, comes, strict=True)):
            order[staying] = torch.tensor(staying, dtype=torch.int64)
            free = ((order < 0) & (home == band)).nonzero().squeeze(1)
            order[free] = torch.tensor(coming, dtype=torch.int64)
        return order
