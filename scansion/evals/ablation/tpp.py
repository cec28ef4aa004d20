"""Targeted probe perturbation (Karvonen et al. 2025): does ablating a class's features hurt that class's probe alone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from scansion.device import dtype_name
from scansion.evals.ablation.classes import CLASS_SETS, ClassTexts, load_classes
from scansion.evals.ablation.features import AUDIT, THRESHOLDS, Pooled, effects, strongest
from scansion.evals.base import EvalResult, LoadedSAE, reasons_before_running
from scansion.evals.probing.accuracy import Accuracies, over_data_sets, over_tasks
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import fit_linear
from scansion.evals.probing.sets import probing_source
from scansion.evals.reading.texts import TextReader
from scansion.evals.reading.training import ReadsTexts, as_trained, require_sae_matches_lm
from scansion.evals.statistics import Estimate
from scansion.lm import HookPoint, LanguageModel


class TppConfig(ReadsTexts):
    """Which classes, how many texts, and how many features are ablated."""

    evaluation: ClassVar[str] = "tpp"

    datasets: tuple[str, ...] = Field(
        default=("occupations", "news_topics"),
        min_length=1,
        description=f"Data sets of classes: {', '.join(CLASS_SETS)}.",
    )
    train_per_class: int = Field(default=200, ge=2, description="Training texts per class, at most.")
    test_per_class: int = Field(default=100, ge=2, description="Test texts per class, at most.")
    n_values: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=THRESHOLDS, description="Numbers of features to ablate."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Texts per batch of the LM.")
    seed: int = Field(default=42, ge=0, description="Seed for drawing texts and for the bootstrap.")


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
    found = [_one_set(name, texts[name], subjects, lm, hook_point, config) for name in config.datasets]
    return [
        _result(subject, [one[index] for one in found], dtype_name(lm.model.dtype), config)
        for index, subject in enumerate(subjects)
    ]


def _one_set(
    name: str,
    texts: ClassTexts,
    subjects: Sequence[LoadedSAE],
    lm: LanguageModel,
    hook_point: HookPoint,
    config: TppConfig,
) -> list[tuple[TppDataset, Accuracies, bool]]:
    rows, flat = _rows(texts)
    saes = [subject.sae for subject in subjects]
    reader = TextReader(lm, hook_point, config.text_length, config.lm_batch_size)
    features = pool_texts(flat, reader, saes, what=f"pool {name}")
    labelled = _labelled(rows, config.seed)
    found: list[tuple[TppDataset, Accuracies, bool]] = []
    for subject, table in zip(subjects, features.saes, strict=True):
        pooled = Pooled(features.lm, table, subject.sae.W_dec.detach().float().cpu().numpy())
        scores, clean = tpp_scores(pooled, labelled["train"], labelled["test"], config.n_values, config.seed)
        dataset = TppDataset(
            name=name,
            stands_for=CLASS_SETS[name].stands_for,
            n_train=sum(map(len, texts.train.values())),
            n_test=sum(map(len, texts.test.values())),
            clean_accuracy=clean,
            by_n=_figures(scores, config),
        )
        found.append((dataset, scores, bool(table.any())))
    return found


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


def _rows(texts: ClassTexts) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Rows of each class's texts, in a list of them all."""
    flat: list[str] = []
    rows: dict[str, list[np.ndarray]] = {}
    for side, by_class in (("train", texts.train), ("test", texts.test)):
        rows[side] = []
        for own in by_class.values():
            rows[side].append(np.arange(len(flat), len(flat) + len(own)))
            flat += own
    return rows, flat


def _labelled(rows: dict[str, list[np.ndarray]], seed: int) -> dict[str, Labelled]:
    """For each class, its rows and as many of the others', in equal parts."""
    generator = np.random.default_rng(seed)
    found: dict[str, Labelled] = {}
    for side, classes in rows.items():
        found[side] = []
        for own in classes:
            others = [generator.permutation(other) for other in classes if other is not own]
            # One text of each other class in turn, until there are as many as the class has.
            mixed = np.stack(others, axis=1).ravel()[: len(own)]
            found[side].append((np.concatenate([own, mixed]), np.repeat([1, 0], [len(own), len(mixed)])))
    return found


def _figures(scores: Accuracies, config: TppConfig) -> dict[int, TppFigures]:
    estimates = scores.estimates()
    return {
        n: TppFigures(total=estimates[3 * i], intended=estimates[3 * i + 1], unintended=estimates[3 * i + 2])
        for i, n in enumerate(config.n_values)
    }


def _result(
    subject: LoadedSAE, found: list[tuple[TppDataset, Accuracies, bool]], dtype: str, config: TppConfig
) -> TppResult:
    reasons = reasons_before_running(subject)
    if not any(fired for _, _, fired in found):
        reasons.append("all features are dead: none fired on any text")
    return TppResult.of(
        subject,
        {"config": config.model_dump(mode="json"), "source": probing_source(), "lm_dtype": dtype},
        config.seed,
        reasons,
        notes=[AUDIT, *(f"{one.name} stands in for {one.stands_for}" for one, _, _ in found)],
        by_n=_figures(over_data_sets([scores for _, scores, _ in found]), config),
        datasets=[one for one, _, _ in found],
    )
