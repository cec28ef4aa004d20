"""Adaptive mask: starts soft, ends hard, and keeps a budget of open positions while it learns which ones."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks.gate import ActsOn
from scansion.masks.learnt import LearntConfig, LearntMask
from scansion.masks.registry import register_mask
from scansion.masks.schedule import MaskUpdates, Temperature
from scansion.masks.starts import Start


class AdaptiveMaskConfig(LearntConfig, frozen=True):
    """Settings of :class:`AdaptiveMask`.

    Example:
        >>> scansion.AdaptiveMaskConfig(positions_per_feature=8, shared=0.25)
    """

    family: Literal["adaptive"] = "adaptive"
    acts_on: ActsOn = Field(
        default="straight_through",
        description="As for all families; by default the mask is rounded in the forward pass only.",
    )
    temperature: Temperature = Temperature(start=1.0, end=0.05, shape="geometric", until=0.8)
    start: Start = Start(kind="contiguous", low=0.4, high=0.6)
    updates: MaskUpdates = MaskUpdates(lr_multiplier=10.0)
    positions_per_feature: int | None = Field(
        default=None, ge=1, description="Budget: open positions per bound feature; default an eighth of the context."
    )
    budget: Literal["each", "average"] = Field(
        default="each",
        description="each: every bound feature has exactly that many open positions; average: they have that many on "
        "average, features compete for them, and each keeps at least one.",
    )


@register_mask(AdaptiveMaskConfig)
class AdaptiveMask(LearntMask):
    """Learns which positions each feature may fire at, within a budget of open positions; starts soft and ends hard.

    ``sigmoid((logits - threshold) / temperature)``, with the threshold (one per feature, or one for all) at which exactly
    the budget is open. A threshold, unlike a penalty, meets the budget at every step and has no coefficient to tune.

    Args:
        config: budget, start, schedule.
        n_positions: context length L; the budget must be in [1, L].
        d_sae: number of features.

    Raises:
        ConfigError: the budget is larger than the context.
    """

    config: AdaptiveMaskConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def __init__(self, config: AdaptiveMaskConfig, n_positions: int, d_sae: int) -> None:
        super().__init__(config, n_positions, d_sae)
        self.n_open = config.positions_per_feature or max(1, n_positions // 8)
        if self.n_open > n_positions:
            raise ConfigError(f"positions_per_feature is {self.n_open}, but a context has only {n_positions} positions")
        threshold, opened = self._ranking()
        self.threshold: Float[Tensor, "..."]
        self.opened: Bool[Tensor, "L d_bound"]
        self.register_buffer("threshold", threshold)
        self.register_buffer("opened", opened)

    @torch.no_grad()
    def _ranking(self) -> tuple[Float[Tensor, "..."], Bool[Tensor, "L d_bound"]]:
        """The threshold (one per feature, or one for all) and which positions are open.

        The threshold is half way between the lowest open logit and the highest closed one.
        """
        logits, opened = self.logits, torch.zeros_like(self.logits, dtype=torch.bool)
        if self.config.budget == "each":
            values, places = logits.topk(min(self.n_open + 1, self.n_positions), dim=0)
            opened.scatter_(0, places[: self.n_open], True)
            return values[self.n_open - 1 :].mean(dim=0), opened
        # The best position of each feature ranks first, whatever its logit: every feature keeps at least one position.
        first = logits.scatter(0, logits.argmax(dim=0, keepdim=True), torch.inf).flatten()
        n_open = self.n_open * self.d_bound
        places = first.topk(min(n_open + 1, len(first))).indices
        opened.view(-1)[places[:n_open]] = True
        return logits.flatten()[places[n_open - 1 :]].mean(), opened

    def _settle(self) -> None:
        threshold, opened = self._ranking()
        self.threshold.copy_(threshold)
        self.opened.copy_(opened)

    def start_from_usage(self, usage: Float[Tensor, "L d_sae"]) -> None:
        super().start_from_usage(usage)
        self._settle()

    def end_step(self, step: int) -> None:
        if self.moves_at(step):
            self._settle()

    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        return ((self.logits - self.threshold) / self.temperature).sigmoid()

    def is_open(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        shared = self.opened.new_ones(self.n_positions, self.n_shared)
        return torch.cat([shared, self.opened], dim=1)[self.table_rows(positions)]
