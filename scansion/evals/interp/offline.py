"""Interpretability without a judge: do the tokens a feature fired on predict its firing on new documents?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field

from scansion.activations import ActivationStore
from scansion.evals.base import EvalResult, LoadedSAE, reasons_before_running
from scansion.evals.interp.firing import Firing, firing_of_sample
from scansion.evals.reading.training import CountsPositions, as_trained
from scansion.evals.statistics import Estimate

# A token seen this often counts half by its own rate and half by the feature's overall rate.
_SMOOTHING = 2.0
_LEAST_SCORED = 5


class OfflineInterpConfig(CountsPositions):
    """Which features, and how much they must fire."""

    evaluation: ClassVar[str] = "autointerp_offline"

    n_features: int = Field(
        default=200, ge=1, description="Features to draw at random, among those with least_firings."
    )
    least_firings: int = Field(default=15, ge=2, description="Fewest tokens a feature must fire on to be drawn.")
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="Seed for the draw, the split, the null and the bootstrap."
    )


class FeatureForecast(BaseModel):
    """How well tokens predict one feature's firing.

    Attributes:
        rate: firings per token, where its mask lets it fire.
        auroc: of the forecast against firing on the other half of the documents; chance 0.5.
        balanced_accuracy: of calling "fires" where the forecast is above the feature's own rate; chance 0.5.
        null_auroc: the same forecast learnt from randomly permuted firings.
        top_tokens: the ids with the highest smoothed rates, those that explain the feature if anything of the token does.
    """

    model_config = ConfigDict(extra="forbid")

    feature: int
    rate: float
    auroc: float
    balanced_accuracy: float
    null_auroc: float
    top_tokens: list[int]


class OfflineInterpResult(EvalResult):
    """Means over features, with intervals over features.

    Attributes:
        auroc, balanced_accuracy: see :class:`FeatureForecast`.
        null_auroc: mean of the null, about 0.5.
        null_95: its 95th percentile over features.
        share_above_null: share of features whose AUROC is above that percentile; 0.05 by chance.
    """

    eval: str = "autointerp_offline"
    auroc: Estimate | None
    balanced_accuracy: Estimate | None
    null_auroc: float | None
    null_95: float | None
    share_above_null: float | None
    features: list[FeatureForecast]


def evaluate_offline_interp(
    subjects: Sequence[LoadedSAE], store: ActivationStore, config: OfflineInterpConfig
) -> list[OfflineInterpResult]:
    """Learn each feature's firing rate by token and by previous token on half of the documents; forecast the other half.

    The forecast's log-odds are those of the token's rate, plus those of the previous token's, minus those of the feature's
    own rate; rates are smoothed towards the latter. Only tokens where the feature's mask lets it fire count. A feature
    that reads one word scores near 1; one that reads a wider context, or nothing, near 0.5: a low score does not say
    that a feature means nothing, only that single tokens do not predict it. There is no such evaluation in SAEBench.

    Args:
        subjects: SAEs.
        store: held-out activations with their tokens.
        config: which features.
    """
    config = as_trained(config, subjects)
    results: list[OfflineInterpResult] = []
    for subject in subjects:
        firing = firing_of_sample(subject, store, config.n_features, config.least_firings, config, config.seed)
        results.append(_result(subject, forecast_features(firing, config.seed), store, config))
    return results


def forecast_features(firing: Firing, seed: int) -> list[FeatureForecast]:
    """The forecast of each feature; those that fire too little in either half to be scored are left out."""
    from sklearn.metrics import roc_auc_score  # takes a second, which every command would wait for

    generator = np.random.default_rng(seed)
    documents = np.unique(firing.documents[firing.valid])
    learnt = np.isin(firing.documents, generator.permutation(documents)[: len(documents) // 2])
    found: list[FeatureForecast] = []
    for column, feature in enumerate(firing.features):
        usable = firing.counted & firing.allowed[:, column, None]
        learn, test = usable & learnt, usable & ~learnt
        fires = firing.acts[..., column] > 0
        if min(fires[learn].sum(), fires[test].sum(), (~fires[test]).sum(), (~fires[learn]).sum()) < _LEAST_SCORED:
            continue
        halves = [(firing.tokens[side], firing.previous[side]) for side in (learn, test)]
        forecast, by_token = _forecast(halves[0], fires[learn], halves[1])
        null, _ = _forecast(halves[0], generator.permutation(fires[learn]), halves[1])
        truth = fires[test]
        best = sorted(by_token, key=lambda token: -by_token[token])[:10]
        found.append(
            FeatureForecast(
                feature=int(feature),
                rate=float(fires[usable].mean()),
                auroc=float(roc_auc_score(truth, forecast)),
                balanced_accuracy=float(((forecast > 0)[truth].mean() + (forecast <= 0)[~truth].mean()) / 2),
                null_auroc=float(roc_auc_score(truth, null)),
                top_tokens=best,
            )
        )
    return found


def _forecast(
    learn: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
    fires: Bool[np.ndarray, " n"],
    test: tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]],
) -> tuple[Float[np.ndarray, " m"], dict[int, float]]:
    """Log-odds of firing at the test tokens above the feature's own, and each learnt token's smoothed rate."""
    own = fires.mean()
    total = np.zeros(len(test[0]))
    rates: list[dict[int, float]] = []
    for seen, asked in zip(learn, test, strict=True):
        names, index = np.unique(seen, return_inverse=True)
        hits, counts = np.bincount(index, weights=fires), np.bincount(index)
        rate = (hits + _SMOOTHING * own) / (counts + _SMOOTHING)
        gain = np.log(rate / (1 - rate)) - np.log(own / (1 - own))
        place = np.minimum(np.searchsorted(names, asked), len(names) - 1)
        total += np.where(names[place] == asked, gain[place], 0.0)
        rates.append(dict(zip(names.tolist(), rate.tolist(), strict=True)))
    return total, rates[0]


def _result(
    subject: LoadedSAE, found: list[FeatureForecast], store: ActivationStore, config: OfflineInterpConfig
) -> OfflineInterpResult:
    reasons = reasons_before_running(subject)
    if not found:
        reasons.append("no feature fires often enough on held-out text to be scored")
    nulls = np.array([one.null_auroc for one in found])
    limit = float(np.percentile(nulls, 95)) if found else None
    scores = np.array([one.auroc for one in found])

    return OfflineInterpResult.of(
        subject,
        {"config": config.model_dump(mode="json"), "store": store.manifest.key},
        config.seed,
        reasons,
        notes=["forecasts know the token and the one before it, nothing wider; no language model judges anything"],
        auroc=Estimate.of_mean([one.auroc for one in found], config.seed),
        balanced_accuracy=Estimate.of_mean([one.balanced_accuracy for one in found], config.seed),
        null_auroc=float(nulls.mean()) if found else None,
        null_95=limit,
        share_above_null=float((scores > limit).mean()) if limit is not None else None,
        features=found,
    )
