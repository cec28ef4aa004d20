"""The result of the causal evaluation, and the sums over contexts that its figures are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from scansion.evals.base import EvalResult
from scansion.evals.causal.features import Target
from scansion.evals.statistics import Estimate, finite

MODES = ("ablate", "steer")
PLACES = ("home", "other")


class FeatureEffect(BaseModel):
    """What interventions on one feature did; KL in nats per token, None where there was no such token.

    Attributes:
        feature: its number.
        share: of the entropy of its firing that position explains, above chance.
        positions, other: where it was changed.
        predicted: share of its activation at its positions, of that at both.
        value: what steering set it to.
        at: mode -> KL at the changed tokens, at its positions and at the others.
        after: mode -> KL at later tokens that were not changed, likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: int
    share: float
    positions: list[int]
    other: list[int]
    predicted: float
    value: float
    at: dict[str, list[float | None]]
    after: dict[str, list[float | None]]


class GroupEffect(BaseModel):
    """What interventions on a group of features did, over all of them; intervals are over contexts.

    Attributes:
        predicted_share: of the ablation's effect at the features' positions, if it followed their activation.
        ablation_share, steering_share: of the effect at the changed tokens, that at the features' positions: 0.5 where the
            same change does as much elsewhere.
        ablation_at, ablation_after, steering_at, steering_after: KL at the features' positions and after them, nats per token.
        features: each by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    predicted_share: float | None
    ablation_share: Estimate
    steering_share: Estimate
    ablation_at: Estimate
    ablation_after: Estimate
    steering_at: Estimate
    steering_after: Estimate
    features: list[FeatureEffect]


class PositionCausalResult(EvalResult):
    """Interventions on the features most tied to positions, and on controls at the same positions.

    Attributes:
        bound, control: effects; None where nothing was measured.
        n_contexts, n_documents: that were run.
        before: largest KL at any token before the first one changed, which a causal model leaves at 0 up to rounding.
    """

    eval: str = "position_causal"
    bound: GroupEffect | None = None
    control: GroupEffect | None = None
    n_contexts: int = 0
    n_documents: int = 0
    before: float | None = None


class Tally:
    """Sums of KL of a group of features: [mode, place, feature, context] each, at the changed tokens and after them."""

    def __init__(self, n_features: int, n_contexts: int) -> None:
        shape = (len(MODES), len(PLACES), n_features, n_contexts)
        self.at, self.n_at, self.after, self.n_after = (np.zeros(shape) for _ in range(4))

    def effect(self, targets: Sequence[Target], values: Sequence[float], seed: int) -> GroupEffect:
        """Everything that is reported of the group."""
        figures: dict[str, Any] = {}
        for mode, name in enumerate(("ablation", "steering")):
            home, other = (self._per_token(mode, place) for place in range(2))
            figures[f"{name}_share"] = Estimate.of_ratio(home, home + other, seed)
            for kind, sums, counts in (("at", self.at, self.n_at), ("after", self.after, self.n_after)):
                figures[f"{name}_{kind}"] = Estimate.of_ratio(
                    sums[mode, 0].sum(axis=0), counts[mode, 0].sum(axis=0), seed
                )
        return GroupEffect(
            predicted_share=self._predicted(targets),
            features=[self._of(index, *pair) for index, pair in enumerate(zip(targets, values, strict=True))],
            **figures,
        )

    def _per_token(self, mode: int, place: int) -> Float[np.ndarray, "C"]:
        """Effect at the changed tokens, of each context: sums over features of KL, each feature's scaled to one token."""
        return self._scaled(mode, place).sum(axis=0)

    def _scaled(self, mode: int, place: int) -> Float[np.ndarray, "F C"]:
        """KL at the changed tokens, each feature's over the number of its tokens.

        Contexts that end early have fewer tokens at late positions; without the scale, the place with more tokens would win.
        """
        tokens = np.maximum(self.n_at[mode, place].sum(axis=1, keepdims=True), 1)
        return self.at[mode, place] / tokens

    def _predicted(self, targets: Sequence[Target]) -> float | None:
        """The profiles' shares, each weighted by the feature's effect as it counts in the share that is measured."""
        weights = (self._scaled(0, 0) + self._scaled(0, 1)).sum(axis=1)
        return (
            finite(float(weights @ [target.predicted for target in targets] / weights.sum())) if weights.sum() else None
        )

    def _of(self, index: int, target: Target, value: float) -> FeatureEffect:
        def means(sums: np.ndarray, counts: np.ndarray) -> dict[str, list[float | None]]:
            totals, n = sums[:, :, index].sum(axis=-1), counts[:, :, index].sum(axis=-1)
            return {
                mode: [float(totals[m, p] / n[m, p]) if n[m, p] else None for p in range(len(PLACES))]
                for m, mode in enumerate(MODES)
            }

        return FeatureEffect(
            feature=target.feature,
            share=target.share,
            positions=list(target.home),
            other=list(target.other),
            predicted=target.predicted,
            value=value,
            at=means(self.at, self.n_at),
            after=means(self.after, self.n_after),
        )
