"""Unlearning (Farrell et al. 2024; SAEBench): clamp features of one subject and see which questions are still answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from scansion.corpus.config import CorpusConfig
from scansion.device import dtype_name
from scansion.evals.base import LoadedSAE, reasons_before_running
from scansion.evals.reading.training import ReadsTexts, as_trained, require_sae_matches_lm
from scansion.evals.unlearning.answering import answer, clamp, firing_rates, fits
from scansion.evals.unlearning.questions import Question, UnlearningData, bundled_questions, hub_questions
from scansion.evals.unlearning.result import Intervention, UnlearningResult, best_setting, held_out, shares
from scansion.lm import HookPoint, LanguageModel
from scansion.progress import progress


class UnlearningConfig(ReadsTexts):
    """Which questions, and which interventions."""

    evaluation: ClassVar[str] = "unlearning"

    source: Literal["stand_in", "hub"] = Field(
        default="stand_in",
        description="Where the questions come from: 'stand_in' (bundled, from sae-probes) or 'hub' (WMDP and MMLU).",
    )
    hub_forget: str = Field(
        default="wmdp-bio", description="With 'hub': configuration of cais/wmdp, the questions to forget."
    )
    hub_retain: tuple[str, ...] = Field(
        default=("high_school_us_history", "college_computer_science", "high_school_geography", "human_aging"),
        min_length=1,
        description="With 'hub': subjects of cais/mmlu, the questions to keep.",
    )
    forget_corpus: CorpusConfig = Field(
        default=CorpusConfig(source="hub:cais/wmdp-bio-forget-corpus", max_documents=1024),
        description="With 'hub': texts on the subject to forget; the hub gives access on request.",
    )
    retain_corpus: CorpusConfig = Field(
        default=CorpusConfig(source="hub:Salesforce/wikitext", hub_config="wikitext-2-raw-v1", max_documents=1024),
        description="With 'hub': texts on the subjects to keep.",
    )
    n_questions: int = Field(default=100, ge=10, description="Questions to forget, and questions to keep, at most.")
    n_texts: int = Field(
        default=200, ge=10, description="With 'stand_in': texts per side that features are selected on."
    )
    retain_thresholds: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.01,),
        min_length=1,
        description="Features firing on at least this share of the tokens to keep are never clamped; one setting per value.",
    )
    n_features: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(10, 20), min_length=1, description="Number of features to clamp; one setting per value."
    )
    multipliers: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0, 25.0, 100.0),
        min_length=1,
        description="Clamped features are set to minus this value wherever they fire; 0 ablates them.",
    )
    context_length: int | None = Field(
        default=None,
        ge=8,
        description="Longest question with a choice, in tokens; longer ones are left out. Default: as the SAE was trained.",
    )
    batch_size: int = Field(default=16, ge=1, description="Sequences (a question with one choice) per batch of the LM.")
    seed: int = Field(default=42, ge=0, lt=2**63, description="Seed for drawing questions.")


def evaluate_unlearning(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, config: UnlearningConfig
) -> list[UnlearningResult]:
    """Clamp the features that fire most on what is to be forgotten and hardly on what is to be kept.

    It differs from SAEBench in four ways. A choice is taken by its mean log-probability a token (on WMDP and MMLU the
    choices are letters, where that is the same). Questions count as known if answered right once, not under all 24
    orders of their choices. The defaults sweep fewer settings, and one that only ablates. And without the hub, questions
    are a stand-in, named as such.

    Args:
        subjects: SAEs for this LM and hook point.
        lm, hook_point: the model, and where features are clamped.
        config: questions and settings.

    Raises:
        AssetError, EvalError, CorpusError: the questions or texts cannot be read.
        EvalError, ShapeError, ModelError: an SAE or the context length does not fit the LM.
    """
    config = as_trained(config, subjects)
    require_sae_matches_lm(subjects, lm, hook_point, config.text_length)
    data = _read(config)
    sides = [
        [question for question in questions if fits(lm, question, config.text_length)]
        for questions in (data.forget_questions, data.retain_questions)
    ]
    saes = [subject.sae for subject in subjects]
    with progress("firing by subject", len(data.forget_texts) + len(data.retain_texts), "texts") as advance:
        forget, retain = (
            firing_rates(texts, lm, hook_point, saes, config.text_length, config.batch_size, advance)
            for texts in (data.forget_texts, data.retain_texts)
        )
    with progress("answer untouched", _n_sequences(sides), "choices") as advance:
        before = [answer(lm, hook_point, questions, config.batch_size, None, advance) for questions in sides]
    (why, chance), (guessed, _) = (
        _guessing(right, questions, what)
        for right, questions, what in zip(before, sides, ("should forget", "should keep"), strict=True)
    )
    results: list[UnlearningResult] = []
    for subject, rates in zip(subjects, zip(forget, retain, strict=True), strict=True):
        reasons = reasons_before_running(subject)
        if not rates[0].any():
            reasons.append("all features are dead: none fired on any text")
        swept = (
            {"interventions": []} if reasons or why else _sweep(subject, lm, hook_point, sides, rates, before, config)
        )
        result = UnlearningResult.of(
            subject,
            {"config": config.model_dump(mode="json"), "lm_dtype": dtype_name(lm.model.dtype)},
            config.seed,
            reasons,
            inapplicable=[why] if why else [],
            notes=[data.note, *([f"{guessed}: that it keeps them says little"] if guessed else [])],
            source=data.source,
            n_forget=len(before[0]),
            n_retain=len(before[1]),
            forget_accuracy=float(before[0].mean()),
            retain_accuracy=float(before[1].mean()),
            forget_chance=chance,
            **swept,
        )
        results.append(result)
    return results


def _guessing(right: Bool[np.ndarray, " n"], questions: Sequence[Question], what: str) -> tuple[str | None, float]:
    """Why the LM does not clearly know these questions (None if it does), and the share that guessing gets right."""
    chance = float(np.mean([1 / len(question.choices) for question in questions]))
    # Two standard errors above guessing.
    if right.mean() >= chance + 2 * math.sqrt(chance * (1 - chance) / len(right)):
        return None, chance
    return (
        f"the language model answers {right.mean():.0%} of the questions that it {what}, not clearly more than guessing "
        f"would ({chance:.0%})"
    ), chance


def features_to_clamp(
    forget: Float[np.ndarray, " d_sae"], retain: Float[np.ndarray, " d_sae"], threshold: float
) -> Int[np.ndarray, " k"]:
    """Features by their rate on what is to be forgotten, most first; those with a rate of ``threshold`` or more on what
    is to be kept, or none on what is to be forgotten, are left out."""
    order = np.argsort(-forget, kind="stable")
    return order[(forget[order] > 0) & (retain[order] < threshold)]


def _read(config: UnlearningConfig) -> UnlearningData:
    if config.source == "stand_in":
        return bundled_questions(config.n_questions, config.n_texts, config.seed)
    return hub_questions(
        config.hub_forget, config.hub_retain, config.n_questions, config.forget_corpus, config.retain_corpus
    )


def _n_sequences(sides: Sequence[Sequence[Question]]) -> int:
    return sum(len(question.choices) for side in sides for question in side)


def _sweep(
    subject: LoadedSAE,
    lm: LanguageModel,
    hook_point: HookPoint,
    sides: Sequence[Sequence[Question]],
    rates: tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]],
    before: Sequence[Bool[np.ndarray, " _"]],
    config: UnlearningConfig,
) -> dict[str, Any]:
    """The fields of a result that the interventions give."""
    settings = [(t, n, m) for t in config.retain_thresholds for n in config.n_features for m in config.multipliers]
    n_sequences = _n_sequences(sides)
    known: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def intervene(threshold: float, multiplier: float, features: Int[np.ndarray, " k"]) -> Intervention:
        clamped = clamp(subject.sae, features, -multiplier)
        after = [answer(lm, hook_point, questions, config.batch_size, clamped, advance) for questions in sides]
        for side, right, first in zip(known, after, before, strict=True):
            side.append(right[first])
        return Intervention(
            retain_threshold=threshold,
            multiplier=multiplier,
            features=features.tolist(),
            forget_accuracy=float(after[0].mean()),
            retain_accuracy=float(after[1].mean()),
            forget_kept=float(shares(known[0][-1])),
            retain_kept=float(shares(known[1][-1])),
        )

    with progress(f"unlearn {subject.name}", (len(settings) + 1) * n_sequences, "choices") as advance:
        found = [intervene(t, multiplier, features_to_clamp(*rates, t)[:n]) for t, n, multiplier in settings]
        forget, retain = (np.stack(side) for side in known)
        best = best_setting(forget, retain)
        score = 0.0 if best is None else float(1 - shares(forget)[best])
        control = None
        if best is not None:
            threshold, n, multiplier = settings[best]
            others = np.random.default_rng(config.seed).permutation(features_to_clamp(*rates, threshold)[n:])
            control = intervene(threshold, multiplier, others[:n]) if len(others) >= n else None
        if control is None:
            advance(n_sequences)
    estimate = held_out(forget, retain, config.seed)
    return {"score": score, "held_out": estimate, "interventions": found, "control": control}
