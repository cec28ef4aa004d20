"""Targeted probe perturbation (Karvonen et al. 2025): does ablating a class's features hurt that class's probe alone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from scansion.evals.ablation.classes import CLASS_SETS, Rows, load_classes
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
from scansion.evals.probing.accuracy import Accuracies, over_data_sets, over_tasks
from scansion.evals.probing.probes import fit_linear
from scansion.evals.reading.training import as_trained, require_sae_matches_lm
from scansion.evals.statistics import Estimate
from scansion.lm import HookPoint, LanguageModel


class TppConfig(AblationConfig):
    """Which classes, how many texts, and how many features are ablated."""

    evaluation: ClassVar[str] = "tpp"

    datasets: tuple[str, ...] = Field(
        default=("occupations", "news_topics"),
        min_length=1,
        description=f"Data sets of classes: {', '.join(CLASS_SETS)}.",
    )
    train_per_class: int = Field(default=200, ge=2, description="Training texts per class, at most.")
    test_per_class: int = Field(default=100, ge=2, description="Test texts per class, at most.")


class TppFigures(BaseModel):
    """Losses of accuracy after ablation, each in [-1, 1].

    Attributes:
        total: intended minus unintended; higher is better.
        intended: of a class's own probe.
        unintended: of the other classes' probes, on average.
    """

    model_config = ConfigDict(extra="forbid")

    total: Estimate
    intended: Estimate
    unintended: Estimate


class TppDataset(BaseModel):
    """One set of classes: the probes' mean accuracy before any ablation, and the figures for each number of features."""

    model_config = ConfigDict(extra="forbid")

    name: str
    stands_for: str
    n_train: int
    n_test: int
    clean_accuracy: float
    by_n: dict[int, TppFigures]


class TppResult(EvalResult):
    """Means over data sets for each number of ablated features, with intervals over test texts."""

    eval: str = "tpp"
    by_n: dict[int, TppFigures]
    datasets: list[TppDataset]


def evaluate_tpp(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, config: TppConfig
) -> list[TppResult]:
    """Ablate the features that indicate one class, and measure which classes' probes lose accuracy.

    The probe of class j separates its texts from as many of the others, on the LM's activations averaged over tokens. The
    features of class i are those of the largest (mean on the class - mean off it, at least 0) x (decoder row . probe).
    With A the accuracy and A^i that after ablating class i: TPP = mean over i of (A_i - A^i_i) - mean over i and j /= i
    of (A_j - A^i_j).

    It differs from SAEBench in three ways: the probes are scikit-learn's logistic regression, where SAEBench trains with
    AdamW and keeps the epoch that does best on the test texts; padding never counts, where SAEBench decodes its zeros;
    and the data sets are stand-ins.

    Args:
        subjects: SAEs for this LM and hook point.
        lm, hook_point: source of the activations.
        config: classes and sizes.

    Raises:
        ConfigError, AssetError: an unknown set, or the asset has not been fetched.
        EvalError, ShapeError, ModelError: an SAE or the context length does not fit the LM.
    """
    config = as_trained(config, subjects)
    texts = {
        name: load_classes(name, config.train_per_class, config.test_per_class, config.seed) for name in config.datasets
    }
    require_sae_matches_lm(subjects, lm, hook_point, config.text_length)
    by_subject: list[list[tuple[TppDataset, Accuracies]]] = [[] for _ in subjects]
    fired = [False for _ in subjects]
    for name, classes in texts.items():
        flat, *sides = classes.rows()
        generator = np.random.default_rng(config.seed)
        train, test = (_labelled(list(side.values()), generator) for side in sides)
        for index, pooled in enumerate(pool_set(name, flat, subjects, lm, hook_point, config)):
            fired[index] |= bool(pooled.acts.any())
            scores, clean = tpp_scores(pooled, train, test, config.n_values, config.seed)
            dataset = TppDataset(
                name=name,
                stands_for=CLASS_SETS[name].stands_for,
                n_train=sum(map(len, classes.train.values())),
                n_test=sum(map(len, classes.test.values())),
                clean_accuracy=clean,
                by_n=_figures(scores, config),
            )
            by_subject[index].append((dataset, scores))
    data = data_with(lm, config)
    return [
        TppResult.of(
            subject,
            data,
            config.seed,
            reasons_from_firing(subject, any_fired),
            notes=[AUDIT, *(f"{one.name} stands in for {one.stands_for}" for one, _ in found)],
            by_n=_figures(over_data_sets([scores for _, scores in found]), config),
            datasets=[one for one, _ in found],
        )
        for subject, found, any_fired in zip(subjects, by_subject, fired, strict=True)
    ]


Labelled = list[tuple[np.ndarray, np.ndarray]]


def tpp_scores(
    pooled: Pooled, train: Labelled, test: Labelled, n_values: Sequence[int], seed: int
) -> tuple[Accuracies, float]:
    """The three figures for each n, one after another (total, intended, unintended), and the clean accuracy.

    Args:
        pooled: the texts.
        train, test: for each class, rows and labels (1: of the class).
        n_values: numbers of features to ablate.
        seed: of the bootstrap.
    """
    n_classes = len(train)
    probes = [fit_linear(pooled.x[rows], labels) for rows, labels in train]
    order = [
        effects(pooled, rows, labels, probe, positive_only=True)
        for (rows, labels), probe in zip(train, probes, strict=True)
    ]
    drops: list[Float[np.ndarray, "figures n"]] = []
    clean_accuracies: list[float] = []
    for j, (rows, labels) in enumerate(test):
        clean = probes[j].correct(pooled.x[rows], labels)
        clean_accuracies.append(float(clean.mean()))
        figures: list[np.ndarray] = []
        for n in n_values:
            # Row i: what class j's probe loses on each of its test texts when class i is ablated.
            lost = np.stack(
                [
                    clean - probes[j].correct(pooled.without(rows, strongest(order[i], n)), labels)
                    for i in range(n_classes)
                ]
            )
            unintended = (lost.sum(axis=0) - lost[j]) / (n_classes - 1)
            figures += [lost[j] - unintended, lost[j], unintended]
        drops.append(np.stack(figures))
    return over_tasks(drops, [rows for rows, _ in test], [seed]), float(np.mean(clean_accuracies))


def _labelled(classes: Sequence[Rows], generator: np.random.Generator) -> Labelled:
    """For each class, its rows and as many of the others', in equal parts."""
    found: Labelled = []
    for own in classes:
        others = [generator.permutation(other) for other in classes if other is not own]
        # One text of each other class in turn, until there are as many as the class has.
        mixed = np.stack(others, axis=1).ravel()[: len(own)]
        found.append((np.concatenate([own, mixed]), np.repeat([1, 0], [len(own), len(mixed)])))
    return found


def _figures(scores: Accuracies, config: TppConfig) -> dict[int, TppFigures]:
    estimates = scores.estimates()
    return {
        n: TppFigures(total=estimates[3 * i], intended=estimates[3 * i + 1], unintended=estimates[3 * i + 2])
        for i, n in enumerate(config.n_values)
    }
