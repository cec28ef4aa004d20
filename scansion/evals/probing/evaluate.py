"""Sparse probing (Gao et al. 2024; SAEBench): how well a few features, or all of them, tell labelled texts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from scansion.device import dtype_name
from scansion.evals.base import LoadedSAE, reasons_before_running, reasons_from_probes
from scansion.evals.probing.accuracy import Accuracies, over_data_sets, over_tasks
from scansion.evals.probing.cached_baselines import CachedBaselines
from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import Features, ProbeOutcome, ProbeTask, fit_all
from scansion.evals.probing.result import DatasetResult, SparseProbingResult, TaskResult
from scansion.evals.probing.sets import (
    check_probing_sets,
    expand_probing_sets,
    load_probing_set,
    probing_source,
    stand_in_for,
)
from scansion.evals.probing.split import ProbingSplit
from scansion.evals.probing.untrained import random_controls
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.evals.reading.training import as_trained, require_sae_matches_lm
from scansion.evals.statistics import Estimate, TextGroups, finite
from scansion.lm import HookPoint, LanguageModel
from scansion.progress import progress

__all__ = ["SparseProbingConfig", "SparseProbingResult", "evaluate_sparse_probing"]


def evaluate_sparse_probing(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, config: SparseProbingConfig
) -> list[SparseProbingResult]:
    """Probe SAEs, untrained SAEs of the same settings, the LM itself and the bag of words on pooled texts.

    Every text is run through the LM once for all, and once for all later evaluations at this hook point while its
    activations are kept (see ``cache_gb``). docs/probing.md lists the differences from SAEBench.

    Memory: 4 bytes x (d_in + sum of the d_sae of subjects and controls) x texts of the largest data set, times ``bands``
    where that is the pooling.

    Args:
        subjects: SAEs for this LM and hook point.
        lm, hook_point: source of the activations.
        config: data sets and probes.

    Raises:
        ConfigError: an unknown data set, or one that is not binary.
        AssetError: the data sets have not been fetched.
        EvalError: an SAE belongs to another model or hook point.
        ShapeError: an SAE does not fit the model's width or the context length.
        ModelError: the model has no such layer, or cannot read contexts this long.

    Example:
        >>> [result] = scansion.evaluate_sparse_probing([loaded], lm, scansion.SparseProbingConfig(k_values=[1]))
    """
    config = as_trained(config, subjects)
    check_probing_sets(config.datasets, config.order_corpus, config.hub)
    names = expand_probing_sets(config.datasets, config.hub)
    require_sae_matches_lm(subjects, lm, hook_point, config.text_length)
    cache = ActivationCache.of_gigabytes(config.cache_gb)
    reader = TextReader(lm, hook_point, config.text_length, config.lm_batch_size, config.activations_dtype, cache)
    scores = [_probe_data_set(name, subjects, reader, config) for name in names]
    dtype = dtype_name(lm.model.dtype)
    return [_result(subject, [one[index] for one in scores], dtype, config) for index, subject in enumerate(subjects)]


@dataclass(frozen=True)
class _Scores:
    """What the probes on one kind of features did on one data set: an outcome for each task, and their mean."""

    outcomes: list[ProbeOutcome]
    accuracies: Accuracies


@dataclass(frozen=True)
class _DataSet:
    """One data set as one subject met it."""

    name: str
    splits: list[ProbingSplit]
    lm_over_bag: list[Estimate]
    bag: _Scores
    lm: _Scores
    sae: _Scores
    random: _Scores
    random_by_draw: list[float]
    fired: bool


def _probe_data_set(
    name: str, subjects: Sequence[LoadedSAE], reader: TextReader, config: SparseProbingConfig
) -> list[_DataSet]:
    splits = load_probing_set(name, config.train_size, config.test_size, config.seed, config.order_corpus, config.hub)
    # A text may serve several tasks; it gets one row.
    row_of: dict[str, int] = {}
    for split in splits:
        for text in split.train.texts + split.test.texts:
            row_of.setdefault(text, len(row_of))
    rows = [(_rows(split.train.texts, row_of), _rows(split.test.texts, row_of)) for split in splits]
    controls, control_of = random_controls(subjects, config.seed, config.untrained_draws)
    # The bag, the LM and the untrained SAEs are the same for every SAE of these settings; their probes are fitted once.
    kept = CachedBaselines(reader, splits, config)
    known = {key: kept.load(key) for key in (kept.key("bag"), kept.key("lm"))}
    by_draw = [{kept.key(control): control for control in draw} for draw in zip(*controls, strict=True)]
    keys = [[kept.key(control) for control in draws] for draws in controls]
    known |= {key: kept.load(key) for draws in keys for key in draws}
    unknown = [{key: control for key, control in draw.items() if known[key] is None} for draw in by_draw]
    if not config.cache_gb:  # every pass would run the LM again
        unknown = [{key: control for draw in unknown for key, control in draw.items()}]
    own: list[list[ProbeOutcome]] = []
    fired: list[bool] = []
    # One draw at a time: their tables of features are large.
    for index, some in enumerate(unknown):
        if index and not some:
            continue
        saes = [] if index else [subject.sae for subject in subjects]
        pooled = pool_texts(
            list(row_of), reader, saes, list(some.values()), config.pooling, config.bands, f"pool {name}"
        )
        tables = dict(zip(some, pooled.controls, strict=True))
        if not index:
            always = zip(list(known)[:2], (pooled.bag, pooled.lm), strict=True)
            tables = {key: table for key, table in always if known[key] is None} | tables
            fired = [bool(table.max() > 0) for table in pooled.saes]
        outcomes = _fit(name, [*tables.values(), *pooled.saes], splits, rows, config)
        own += outcomes[len(tables) :]
        for key, outcome in zip(tables, outcomes, strict=False):
            known[key] = outcome
            kept.keep(key, outcome)
    # The name is part of the seed, for the draws of different data sets must be independent.
    seed = [config.seed, *name.encode()]
    test_rows = [test for _, test in rows]

    def scored(mine: list[ProbeOutcome] | None) -> _Scores:
        outcomes = mine or []
        return _Scores(outcomes, over_tasks([outcome.correct for outcome in outcomes], test_rows, seed))

    bag, lm = (scored(outcomes) for outcomes in list(known.values())[:2])
    draws = [[known[key] or [] for key in of_kind] for of_kind in keys]
    random = [scored([ProbeOutcome.mean(task) for task in zip(*of_kind, strict=True)]) for of_kind in draws]
    lm_over_bag = [
        over_tasks([theirs.correct[:1]], [test], seed).minus(over_tasks([words.correct], [test], seed)).estimates()[0]
        for theirs, words, test in zip(lm.outcomes, bag.outcomes, test_rows, strict=True)
    ]
    return [
        _DataSet(
            name,
            splits,
            lm_over_bag,
            bag,
            lm,
            scored(own[index]),
            random[kind],
            [float(np.mean([task.correct[0].mean() for task in draw])) for draw in draws[kind]],
            fired[index],
        )
        for index, kind in enumerate(control_of)
    ]


def _fit(
    name: str,
    tables: Sequence[Features],
    splits: Sequence[ProbingSplit],
    rows: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]],
    config: SparseProbingConfig,
) -> list[list[ProbeOutcome]]:
    """For each table, the outcome of each task."""
    tasks = [
        ProbeTask(table, train, split.train.labels, test, split.test.labels)
        for table in tables
        for split, (train, test) in zip(splits, rows, strict=True)
    ]
    n_probes = sum(task.n_probes(config.k_values) for task in tasks)
    outcomes: list[ProbeOutcome] = []
    with progress(f"probe {name}", n_probes, "probes") as advance:
        for outcome in fit_all(tasks, config.k_values):
            outcomes.append(outcome)
            advance(len(outcome.correct))
    return [outcomes[start : start + len(splits)] for start in range(0, len(outcomes), len(splits))]


def _rows(texts: Sequence[str], row_of: dict[str, int]) -> Int[np.ndarray, " n"]:
    return np.array([row_of[text] for text in texts])


def _result(
    subject: LoadedSAE, sets: list[_DataSet], lm_dtype: str, config: SparseProbingConfig
) -> SparseProbingResult:
    bag, lm, sae, random = (
        over_data_sets([getattr(one, kind).accuracies for one in sets]) for kind in ("bag", "lm", "sae", "random")
    )
    return SparseProbingResult.of(
        subject,
        {"config": config.model_dump(mode="json"), "source": probing_source(), "lm_dtype": lm_dtype},
        config.seed,
        _reasons(subject, sets),
        pooling=config.pooling,
        **_estimates(bag, lm, sae, random, config),
        by_text=_by_text(bag, lm, sae, random, config),
        random_by_draw=[finite(value) for value in np.mean([one.random_by_draw for one in sets], axis=0)],
        datasets=[_dataset_result(one, config) for one in sets],
    )


def _dataset_result(one: _DataSet, config: SparseProbingConfig) -> DatasetResult:
    estimates = _estimates(one.bag.accuracies, one.lm.accuracies, one.sae.accuracies, one.random.accuracies, config)
    return DatasetResult(
        name=one.name,
        stand_in=None if config.hub else stand_in_for(one.name),
        qualified=_above_zero(estimates["lm_over_bag"]),
        **estimates,
        tasks=[_task_result(one, index, config) for index in range(len(one.splits))],
    )


def _estimates(
    bag: Accuracies, lm: Accuracies, sae: Accuracies, random: Accuracies, config: SparseProbingConfig
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bag_test_accuracy": bag.estimates()[0],
        "lm_over_bag": lm.first().minus(bag).estimates()[0],
    }
    for name, accuracies in (("lm", lm), ("sae", sae), ("random", random), ("gain", sae.minus(random))):
        every, *top = accuracies.estimates()
        found |= {f"{name}_test_accuracy": every, f"{name}_top_k": dict(zip(config.k_values, top, strict=True))}
    return found


def _by_text(
    bag: Accuracies, lm: Accuracies, sae: Accuracies, random: Accuracies, config: SparseProbingConfig
) -> dict[str, TextGroups]:
    """Under the names that figures have in comparisons."""
    found = {"bag_of_words_test_accuracy": bag.by_text()[0], "random_sae_test_accuracy": random.by_text()[0]}
    for name, end, accuracies in (("llm", "", lm), ("sae", "", sae), ("sae", "_gain", sae.minus(random))):
        every, *top = accuracies.by_text()
        found[f"{name}_test_accuracy{end}"] = every
        found |= {f"{name}_top_{k}_test_accuracy{end}": one for k, one in zip(config.k_values, top, strict=True)}
    return {name: groups for name, groups in found.items() if groups is not None}


def _task_result(one: _DataSet, index: int, config: SparseProbingConfig) -> TaskResult:
    split, over_bag = one.splits[index], one.lm_over_bag[index]
    figures: dict[str, Any] = {"bag_test_accuracy": finite(one.bag.outcomes[index].correct.mean())}
    for name, scores in (("lm", one.lm), ("sae", one.sae), ("random", one.random)):
        every, *top = (finite(value) for value in scores.outcomes[index].correct.mean(axis=1))
        figures |= {f"{name}_test_accuracy": every, f"{name}_top_k": dict(zip(config.k_values, top, strict=True))}
    return TaskResult(
        name=split.name,
        n_train=len(split.train.texts),
        n_test=len(split.test.texts),
        lm_unconverged=one.lm.outcomes[index].unconverged,
        sae_unconverged=one.sae.outcomes[index].unconverged,
        qualified=_above_zero(over_bag),
        lm_over_bag=over_bag,
        **figures,
    )


def _above_zero(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.low > 0


def _reasons(subject: LoadedSAE, sets: list[_DataSet]) -> list[str]:
    reasons = reasons_before_running(subject)
    values = np.stack([one.sae.accuracies.value for one in sets])
    if not np.isfinite(values).all():
        return [*reasons, "feature activations are not finite"]
    if not any(one.fired for one in sets):
        reasons.append("all features are dead: none fired on any probing text")
    informed = [float(one.lm.accuracies.value[0]) for one in sets]
    return reasons + reasons_from_probes(values.ravel().tolist(), np.repeat(informed, values.shape[1]).tolist())
