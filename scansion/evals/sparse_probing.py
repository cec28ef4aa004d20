"""Sparse probing (Gao et al. 2024; SAEBench): how well a few features, or all of them, tell labelled texts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scansion.device import dtype_name
from scansion.evals.degenerate import reasons_before_running, reasons_from_probes
from scansion.evals.fit import require_fit
from scansion.evals.pooling import pool_texts
from scansion.evals.probe_accuracy import Accuracies, over_data_sets, over_tasks
from scansion.evals.probes import ProbeOutcome, ProbeTask, fit_all
from scansion.evals.probing_result import DatasetResult, SparseProbingResult, TaskResult
from scansion.evals.probing_sets import ProbingSplit, check_probing_sets, load_probing_set, probing_source
from scansion.evals.result import Subject, finite, status_of
from scansion.lm import HookPoint, LanguageModel
from scansion.progress import progress

DEFAULT_DATASETS = ("ag_news", "code", "amazon_stars", "occupations", "sst2")


class SparseProbingConfig(BaseModel):
    """Which data sets, how much of them, and which probes. The defaults are SAEBench's, but for data sets and k."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: tuple[str, ...] = Field(
        default=DEFAULT_DATASETS,
        min_length=1,
        description="Groups (ag_news, code, amazon_stars, occupations, sst2) or binary sets of the sae-probes asset "
        "by their own names, such as 87_glue_cola.",
    )
    train_size: int = Field(default=4000, ge=2, description="Texts a probe is trained on, at most, half of each label.")
    test_size: int = Field(default=1000, ge=2, description="Texts it is tested on, at most, half of each label.")
    context_length: int = Field(default=128, ge=2, description="Tokens of a text that are read, BOS included.")
    k_values: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 5, 10, 20, 50), description="Numbers of features that sparse probes may use."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Texts run through the LM at once.")
    seed: int = Field(default=42, ge=0, description="Seed of the draw of texts and of the bootstrap.")


def evaluate_sparse_probing(
    subjects: Sequence[Subject], lm: LanguageModel, hook_point: HookPoint, config: SparseProbingConfig
) -> list[SparseProbingResult]:
    """Probe SAEs and the LM itself on texts averaged over their tokens; every text is run through the LM once for all.

    It differs from SAEBench in four ways. The probe on all features is scikit-learn's logistic regression, fitted to
    convergence, where SAEBench trains with AdamW and reports the epoch that does best *on the test texts*. Every text
    starts with BOS, whatever the tokenizer does by itself. Padding is known from its mask, not from zeros. And the
    data sets are the asset's, smaller than those on the hub.

    Memory: 4 bytes x (d_in + sum of d_sae) x texts of the largest data set.

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
    """
    check_probing_sets(config.datasets)
    lm.facts.check_context_length(config.context_length)
    hook_point.check(lm.facts.n_layers, lm.facts.name)
    for subject in subjects:
        require_fit(subject, lm, hook_point, config.context_length)
    # For each data set: the LM's scores, then those of each subject.
    scores = [_probe_data_set(name, subjects, lm, hook_point, config) for name in config.datasets]
    dtype = dtype_name(lm.model.dtype)
    return [
        _result(subject, [one[0] for one in scores], [one[index] for one in scores], dtype, config)
        for index, subject in enumerate(subjects, start=1)
    ]


@dataclass(frozen=True)
class _Scores:
    """What the probes on one kind of features did on one data set: an outcome for each task, and their mean."""

    splits: list[ProbingSplit]
    outcomes: list[ProbeOutcome]
    accuracies: Accuracies
    fired: bool


def _probe_data_set(
    name: str, subjects: Sequence[Subject], lm: LanguageModel, hook_point: HookPoint, config: SparseProbingConfig
) -> list[_Scores]:
    splits = load_probing_set(name, config.train_size, config.test_size, config.seed)
    # A text may serve several tasks; it gets one row.
    row_of: dict[str, int] = {}
    for split in splits:
        for text in split.train.texts + split.test.texts:
            row_of.setdefault(text, len(row_of))
    train_rows = [np.array([row_of[text] for text in split.train.texts]) for split in splits]
    test_rows = [np.array([row_of[text] for text in split.test.texts]) for split in splits]
    saes = [subject.sae for subject in subjects]
    tables = pool_texts(list(row_of), lm, hook_point, saes, config.context_length, config.lm_batch_size, f"pool {name}")
    tasks = [
        ProbeTask(table, train, split.train.labels, test, split.test.labels)
        for table in tables
        for split, train, test in zip(splits, train_rows, test_rows, strict=True)
    ]
    outcomes: list[ProbeOutcome] = []
    with progress(f"probe {name}", len(tasks) * (1 + len(config.k_values)), "probes") as advance:
        for outcome in fit_all(tasks, config.k_values):
            outcomes.append(outcome)
            advance(len(outcome.correct))
    scores: list[_Scores] = []
    for index, table in enumerate(tables):
        mine = outcomes[index * len(splits) : (index + 1) * len(splits)]
        # The name is part of the seed, for the draws of different data sets must be independent.
        accuracies = over_tasks([outcome.correct for outcome in mine], test_rows, [config.seed, *name.encode()])
        scores.append(_Scores(splits, mine, accuracies, bool(table.any())))
    return scores


def _result(
    subject: Subject, lm: list[_Scores], sae: list[_Scores], lm_dtype: str, config: SparseProbingConfig
) -> SparseProbingResult:
    reasons = _reasons(subject, lm, sae)
    return SparseProbingResult(
        sae=subject.name,
        status=status_of(reasons),
        reasons=reasons,
        sae_fingerprint=subject.fingerprint,
        sae_metadata=subject.metadata,
        data={"config": config.model_dump(mode="json"), "source": probing_source(), "lm_dtype": lm_dtype},
        seed=config.seed,
        **_estimates(
            over_data_sets([one.accuracies for one in lm]), over_data_sets([one.accuracies for one in sae]), config
        ),
        datasets=[
            DatasetResult(
                name=name,
                **_estimates(ours.accuracies, theirs.accuracies, config),
                tasks=[
                    _task_result(*one, config) for one in zip(ours.splits, ours.outcomes, theirs.outcomes, strict=True)
                ],
            )
            for name, ours, theirs in zip(config.datasets, lm, sae, strict=True)
        ],
    )


def _estimates(lm: Accuracies, sae: Accuracies, config: SparseProbingConfig) -> dict[str, Any]:
    (lm_all, *lm_top), (sae_all, *sae_top) = lm.estimates(), sae.estimates()
    return {
        "lm_test_accuracy": lm_all,
        "lm_top_k": dict(zip(config.k_values, lm_top, strict=True)),
        "sae_test_accuracy": sae_all,
        "sae_top_k": dict(zip(config.k_values, sae_top, strict=True)),
    }


def _task_result(split: ProbingSplit, lm: ProbeOutcome, sae: ProbeOutcome, config: SparseProbingConfig) -> TaskResult:
    lm_all, *lm_top = (finite(value) for value in lm.correct.mean(axis=1))
    sae_all, *sae_top = (finite(value) for value in sae.correct.mean(axis=1))
    return TaskResult(
        name=split.name,
        n_train=len(split.train.texts),
        n_test=len(split.test.texts),
        lm_unconverged=lm.unconverged,
        sae_unconverged=sae.unconverged,
        lm_test_accuracy=lm_all,
        lm_top_k=dict(zip(config.k_values, lm_top, strict=True)),
        sae_test_accuracy=sae_all,
        sae_top_k=dict(zip(config.k_values, sae_top, strict=True)),
    )


def _reasons(subject: Subject, lm: list[_Scores], sae: list[_Scores]) -> list[str]:
    reasons = reasons_before_running(subject)
    values = np.stack([one.accuracies.value for one in sae])
    if not np.isfinite(values).all():
        return [*reasons, "feature activations are not finite"]
    if not any(one.fired for one in sae):
        reasons.append("all features are dead: none fired on any probing text")
    informed = [float(one.accuracies.value[0]) for one in lm]
    return reasons + reasons_from_probes(values.ravel().tolist(), np.repeat(informed, values.shape[1]).tolist())
