"""Every figure of one state of an SAE, from where its features fired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from scansion.evals.position.agreement import auroc, mass_weighted_retention, overlap, reliability, retention
from scansion.evals.position.firing import Firing, Profile
from scansion.evals.position.information import (
    VOITA_THRESHOLD,
    Null,
    bounded_effective_positions,
    corrected,
    firing_entropy,
    information,
)
from scansion.evals.position.result import StateFigures
from scansion.evals.reading.groups import Jackknife
from scansion.evals.statistics import finite

_WITH_INTERVALS = ("information", "auroc", "overlap", "retention")
# Known by group of documents too, but results hold the number alone.
_PLAIN = ("l0", "information_share")


@dataclass(frozen=True, eq=False)
class Measured:
    """One state.

    Attributes:
        varying: figures known by group of documents.
        plain: figures without.
        by_feature: an array a figure, [F]; NaN where a feature never fired or is not bound.
        significant: features whose firing depends on the position; none where p-values were not resolved.
    """

    varying: dict[str, Jackknife]
    plain: dict[str, float]
    by_feature: dict[str, Float[np.ndarray, "F"]]
    significant: Bool[np.ndarray, "F"]

    def figures(self) -> StateFigures:
        """For the result."""
        return StateFigures.model_validate(
            {name: self.varying[name].estimate() for name in _WITH_INTERVALS}
            | {name: finite(self.varying[name].value) for name in _PLAIN}
            | {name: finite(value) for name, value in self.plain.items()}
        )

    @classmethod
    def mean(cls, several: Sequence[Measured]) -> Measured:
        """The mean of several states, figure by figure."""
        return cls(
            {name: Jackknife.mean([one.varying[name] for one in several]) for name in several[0].varying},
            {name: float(np.mean([one.plain[name] for one in several])) for name in several[0].plain},
            {name: np.mean([one.by_feature[name] for one in several], axis=0) for name in several[0].by_feature},
            np.zeros_like(several[0].significant),
        )


def measure(
    firing: Firing,
    null: Null,
    weights: Float[np.ndarray, "P F"],
    chance: Sequence[Float[np.ndarray, "P F"]],
    n_shared: int,
    rate: float | None,
) -> Measured:
    """All figures of one state.

    Args:
        firing: in this state.
        null: of this firing.
        weights: the mask it is compared with.
        chance: the same mask, permuted.
        n_shared: leading features that no mask binds.
        rate: false discovery rate; None if the null's p-values were not resolved.
    """
    whole, halves = firing.without(None), (firing.half(0), firing.half(1))
    fired = whole.counts.sum(axis=0)
    alive = fired > 0
    raw = information(whole)
    excess = raw - null.information
    q = null.q_value()
    significant = alive & (q <= rate) if rate is not None else np.zeros_like(alive)
    score = (whole.mass / np.maximum(whole.tokens, 1)[:, None]).max(axis=0)
    effective = bounded_effective_positions(whole)
    bound = slice(n_shared, None)
    of_mask = {
        "auroc": auroc(weights, whole),
        "overlap": overlap(weights, whole),
        "retention": retention(weights, whole),
    }

    def varying(group: int | None) -> dict[str, float]:
        profile = firing.without(group)
        excess = corrected(firing, null, alive, group)
        return {
            "information": _mean(excess),
            "information_share": _ratio(excess.sum(), firing_entropy(profile)[alive].sum()),
            "l0": float(profile.counts.sum() / profile.tokens.sum()),
            **_agreement(weights[:, bound], profile, bound),
        }

    everything = varying(None)
    without = [varying(group) for group in range(firing.text.n_groups)]
    by_chance = [_agreement(other[:, bound], whole, bound) for other in chance]
    return Measured(
        varying={name: Jackknife(everything[name], np.array([one[name] for one in without])) for name in everything},
        plain={
            "alive_share": float(alive.mean()),
            "information_raw": _mean(raw[alive]),
            "information_null": _mean(null.information[alive]),
            "significant_share": np.nan if rate is None else _mean(significant[alive]),
            "voita_share": _mean(raw[alive] > VOITA_THRESHOLD),
            "voita_share_corrected": _mean(excess[alive] > VOITA_THRESHOLD),
            "effective_positions": _mean(effective[alive]),
            "effective_positions_null": _mean(null.effective_positions[alive]),
            "reliability": _mean(reliability(*halves)[(halves[0].counts.sum(0) > 0) & (halves[1].counts.sum(0) > 0)]),
            "positional_score_median": _quantile(score[alive], 0.5),
            "positional_score_p99": _quantile(score[alive], 0.99),
            **{f"{name}_chance": _mean([one[name] for one in by_chance]) for name in ("auroc", "overlap", "retention")},
            "retention_median": _quantile(of_mask["retention"][bound], 0.5),
        },
        by_feature={
            "information": np.where(alive, excess, np.nan),
            "p_value": null.p_value,
            "q_value": q,
            "effective_positions": effective,
            "positional_score": score,
            **{name: np.where(np.arange(len(fired)) >= n_shared, values, np.nan) for name, values in of_mask.items()},
        },
        significant=significant,
    )


def _agreement(weights: Float[np.ndarray, "P d_bound"], profile: Profile, bound: slice) -> dict[str, float]:
    """Means over bound features; retention weighted by mass."""
    part = profile.of(bound)
    return {
        "auroc": _mean(auroc(weights, part)),
        "overlap": _mean(overlap(weights, part)),
        "retention": mass_weighted_retention(weights, part),
    }


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of what is a number; NaN if nothing is."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else np.nan


def _quantile(values: np.ndarray, q: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, q)) if len(known) else np.nan


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else np.nan
