"""Spurious correlation removal (Karvonen et al. 2025, after SHIFT): does ablating a few features unbias a probe?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scansion.evals.ablation.classes import CROSSED_SETS, Rows, load_quadrants
from scansion.evals.ablation.features import (
    AUDIT,
    AblationConfig,
    Pooled,
    data_with,
    effects,
    pool_set,
    reasons_from_firing,
    strongest,
)
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.probing.probes import fit_linear
from scansion.evals.reading.training import as_trained, require_sae_matches_lm
from scansion.evals.statistics import Estimate
from scansion.lm import HookPoint, LanguageModel

_AttributeName = Literal["first", "second"]


class ScrConfig(AblationConfig):
    """Which texts with two labels, how many, and how many features are ablated."""

    evaluation: ClassVar[str] = "scr"

    datasets: tuple[str, ...] = Field(
        default=tuple(CROSSED_SETS), min_length=1, description=f"Data sets with two labels: {', '.join(CROSSED_SETS)}."
    )
    train_per_quadrant: int = Field(default=200, ge=2, description="Training texts per pair of labels, at most.")
    test_per_quadrant: int = Field(default=100, ge=2, description="Test texts per pair of labels, at most.")


class ScrDirection(BaseModel):
    """One way round: the attribute wanted from the biased probe, while features of the other are ablated.

    Attributes:
        wanted: the attribute of the test labels, by its place in the set's name.
        biased_accuracy: of the biased probe before any ablation.
        clean_accuracy: of a probe trained without the bias: what could be won back.
        cost: clean_accuracy less biased_accuracy, paired by test text.
        by_n: (after - biased) / (clean - biased) for each number of ablated features: 0 is nothing, 1 is all; below 0,
            the ablation does harm. None if the bias costs the probe no more than chance: a score would divide by the
            luck of a few texts.
    """

    model_config = ConfigDict(extra="forbid")

    wanted: _AttributeName
    biased_accuracy: float
    clean_accuracy: float
    cost: Estimate
    by_n: dict[int, Estimate | None]

    @property
    def applies(self) -> bool:
        """Whether there is an accuracy to win back: the interval of ``cost`` lies above 0."""
        return self.cost.low is not None and self.cost.low > 0


class ScrDataset(BaseModel):
    """One set: both ways round. The score is that of the attribute the biased probe is worse at.

    Attributes:
        n_train, n_test: texts of all four pairs of labels together.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    stands_for: str
    n_train: int
    n_test: int
    directions: list[ScrDirection]

    @property
    def scored(self) -> ScrDirection:
        """The direction whose figure is the set's score."""
        return min(self.directions, key=lambda one: one.biased_accuracy)


class ScrResult(EvalResult):
    """Mean scores over the data sets where there was a bias to remove, for each number of ablated features."""

    eval: str = "scr"
    by_n: dict[int, float | None]
    datasets: list[ScrDataset]


def evaluate_scr(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, config: ScrConfig
) -> list[ScrResult]:
    """Train a probe where two labels always agree, then ablate the features of one label and test on the other alone.

    Probes read the LM's activations averaged over tokens. The features of a label are those of the largest absolute
    (difference of means x decoder row . probe of that label).

    It differs from SAEBench in four ways: the probes are scikit-learn's logistic regression, where SAEBench trains with
    AdamW in small batches and keeps the epoch that does best on the test texts; padding never counts; where the bias
    costs no more than chance the set has no score, where SAEBench scores any cost of a thousandth and has 0 for less; and
    the data sets are stand-ins.

    Args:
        subjects: SAEs for this LM and hook point.
        lm, hook_point: source of the activations.
        config: texts and sizes.

    Raises:
        ConfigError, AssetError: an unknown set, or the asset has not been fetched.
        EvalError, ShapeError, ModelError: an SAE or the context length does not fit the LM.
    """
    config = as_trained(config, subjects)
    sets = {
        name: load_quadrants(name, config.train_per_quadrant, config.test_per_quadrant, config.seed)
        for name in config.datasets
    }
    require_sae_matches_lm(subjects, lm, hook_point, config.text_length)
    by_subject: list[list[ScrDataset]] = [[] for _ in subjects]
    fired = [False for _ in subjects]
    for name, quadrants in sets.items():
        flat, train, test = quadrants.rows()
        for index, pooled in enumerate(pool_set(name, flat, subjects, lm, hook_point, config)):
            fired[index] |= bool(pooled.acts.any())
            by_subject[index].append(
                ScrDataset(
                    name=name,
                    stands_for=CROSSED_SETS[name],
                    n_train=sum(map(len, train.values())),
                    n_test=sum(map(len, test.values())),
                    directions=scr_directions(pooled, train, test, config.n_values, config.seed),
                )
            )
    data = data_with(lm, config)
    return [
        _result(subject, datasets, reasons_from_firing(subject, any_fired), data, config)
        for subject, datasets, any_fired in zip(subjects, by_subject, fired, strict=True)
    ]


def scr_directions(
    pooled: Pooled,
    train: dict[tuple[int, int], Rows],
    test: dict[tuple[int, int], Rows],
    n_values: Sequence[int],
    seed: int,
) -> list[ScrDirection]:
    """Both ways round.

    Args:
        pooled: the texts.
        train, test: rows of each pair of labels.
        n_values: numbers of features to ablate.
        seed: of the bootstrap.
    """
    biased_rows = np.concatenate([train[1, 1], train[0, 0]])
    biased = fit_linear(pooled.x[biased_rows], np.repeat([1, 0], [len(train[1, 1]), len(train[0, 0])]))
    places: tuple[tuple[_AttributeName, int], ...] = (("first", 0), ("second", 1))
    balanced = {name: (_labelled(train, place), _labelled(test, place)) for name, place in places}
    probes = {name: fit_linear(pooled.x[rows], labels) for name, ((rows, labels), _) in balanced.items()}
    found: list[ScrDirection] = []
    both_ways: tuple[tuple[_AttributeName, _AttributeName], ...] = (("first", "second"), ("second", "first"))
    for wanted, other in both_ways:
        rows, labels = balanced[other][0]
        order = np.abs(effects(pooled, rows, labels, probes[other], positive_only=False))
        rows, labels = balanced[wanted][1]
        before = biased.correct(pooled.x[rows], labels)
        clean = probes[wanted].correct(pooled.x[rows], labels)
        one = ScrDirection(
            wanted=wanted,
            biased_accuracy=float(before.mean()),
            clean_accuracy=float(clean.mean()),
            cost=Estimate.of_ratio(clean - before, np.ones(len(rows)), seed),
            by_n=dict.fromkeys(n_values),
        )
        for n in n_values if one.applies else ():
            after = biased.correct(pooled.without(rows, strongest(order, n)), labels)
            one.by_n[n] = Estimate.of_ratio(after - before, clean - before, seed)
        found.append(one)
    return found


def _labelled(quadrants: dict[tuple[int, int], Rows], place: int) -> tuple[Rows, Rows]:
    rows = np.concatenate([quadrants[pair] for pair in sorted(quadrants)])
    return rows, np.concatenate([np.full(len(quadrants[pair]), pair[place]) for pair in sorted(quadrants)])


def _result(
    subject: LoadedSAE, datasets: list[ScrDataset], reasons: list[str], data: dict[str, Any], config: ScrConfig
) -> ScrResult:
    no_bias = (
        "the bias costs the language model's own probe no more than chance, so there is nothing to remove: "
        + "; ".join(f"{one.name} {one.scored.cost}" for one in datasets)
    )
    without_score = [
        f"{one.name} has no score: the bias costs the language model's own probe {one.scored.cost} of accuracy on "
        f"{one.n_test} texts, no more than chance"
        for one in datasets
        if not one.scored.applies
    ]
    by_n: dict[int, float | None] = {}
    for n in config.n_values:
        estimates = [one.scored.by_n[n] for one in datasets]
        values = [one.value for one in estimates if one is not None and one.value is not None]
        by_n[n] = float(np.mean(values)) if values else None
    return ScrResult.of(
        subject,
        data,
        config.seed,
        reasons,
        inapplicable=[] if any(one.scored.applies for one in datasets) else [no_bias],
        notes=[AUDIT, *(f"{one.name} stands in for {one.stands_for}" for one in datasets), *without_score],
        by_n=by_n,
        datasets=datasets,
    )
