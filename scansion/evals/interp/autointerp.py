"""Automated interpretability (Paulo et al. 2024; SAEBench): a judge explains a feature, then says where it fires."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scansion.activations import ActivationStore
from scansion.evals.base import EvalResult, LoadedSAE, reasons_before_running
from scansion.evals.interp.chat import ChatEndpoint, Messages
from scansion.evals.interp.examples import Decode, Example, ExampleCounts, FeatureExamples, gather_examples
from scansion.evals.interp.firing import firing_of_sample
from scansion.evals.reading.training import CountsPositions, as_trained
from scansion.evals.statistics import Estimate
from scansion.progress import progress


class AutoInterpConfig(CountsPositions):
    """Which features, which endpoint. The key is read from OPENAI_API_KEY and is never part of a result."""

    evaluation: ClassVar[str] = "autointerp"

    base_url: str = Field(
        default_factory=lambda: os.environ.get("OPENAI_BASE_URL", ""),
        description="Base URL of an OpenAI-compatible endpoint; default: the environment variable OPENAI_BASE_URL.",
    )
    model: str = Field(
        default_factory=lambda: os.environ.get("OPENAI_MODEL", ""),
        description="Name of the judge model at the endpoint; default: the environment variable OPENAI_MODEL.",
    )
    n_features: int = Field(
        default=100, ge=1, description="Features to draw at random, among those with least_firings."
    )
    least_firings: int = Field(default=15, ge=1, description="Fewest tokens a feature must fire on to be drawn.")
    max_explanation_tokens: int = Field(default=30, ge=1, description="Longest explanation, in tokens of the judge.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds to wait for one answer.")
    retries: int = Field(default=4, ge=0, description="How often to repeat a request that failed.")
    workers: int = Field(default=8, ge=1, description="Requests sent at the same time.")
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="Seed for drawing features and examples, and for the bootstrap."
    )

    @model_validator(mode="after")
    def _check_endpoint(self) -> AutoInterpConfig:
        address = urlsplit(self.base_url)
        if "@" in address.netloc or address.query:  # the address becomes part of results
            raise ValueError(
                "OPENAI_BASE_URL holds a password or a key; remove everything before '@' and after '?' and set OPENAI_API_KEY"
            )
        if not self.base_url.startswith(("http://", "https://")) or not self.model:
            raise ValueError(
                "autointerp asks a language model: set OPENAI_BASE_URL (http://... or https://...) and OPENAI_MODEL, and "
                "OPENAI_API_KEY if it wants a key; autointerp_offline needs none"
            )
        return self


class FeatureInterpreted(BaseModel):
    """One feature.

    Attributes:
        explanation: what the judge says the feature fires on.
        fires, predicted: numbers of the examples asked about, from 1: where it does fire, and where the judge says so;
            None if the answer was not a list of numbers.
        score: share of examples classified correctly; None likewise. Always answering "none" scores about 10/14.
        balanced_accuracy: mean of the shares classified correctly among examples that fire and
            among those that do not; chance 0.5.
    """

    model_config = ConfigDict(extra="forbid")

    feature: int
    explanation: str
    fires: list[int]
    predicted: list[int] | None
    score: float | None
    balanced_accuracy: float | None


class AutoInterpResult(EvalResult):
    """Means over features, with intervals over features; None if no answer could be read."""

    eval: str = "autointerp"
    score: Estimate | None
    balanced_accuracy: Estimate | None
    n_unread: int
    features: list[FeatureInterpreted]


def evaluate_autointerp(
    subjects: Sequence[LoadedSAE],
    store: ActivationStore,
    decode: Decode,
    config: AutoInterpConfig,
    counts: ExampleCounts | None = None,
) -> list[AutoInterpResult]:
    """Have each feature explained from 15 examples and detected among 14 others.

    It differs from SAEBench in three ways: the judge is any model, not gpt-4o-mini; examples drawn blindly count as firing
    where the feature does fire in them; and a balanced accuracy is reported with the score.

    Args:
        subjects: SAEs.
        store: held-out activations with their tokens.
        decode: text of a token id.
        config: features and endpoint.
        counts: how many examples; default SAEBench's.

    Raises:
        EvalError: the endpoint refuses or cannot be reached.
    """
    config = as_trained(config, subjects)
    endpoint = ChatEndpoint(
        config.base_url, config.model, os.environ.get("OPENAI_API_KEY", ""), config.timeout, config.retries
    )
    cached = cache(decode)
    results: list[AutoInterpResult] = []
    for subject in subjects:
        firing = firing_of_sample(subject, store, config.n_features, config.least_firings, config, config.seed)
        generator = np.random.default_rng(config.seed)
        found = {
            int(feature): examples
            for column, feature in enumerate(firing.features)
            if (examples := gather_examples(firing, column, cached, counts or ExampleCounts(), generator))
        }
        with (
            progress(f"interpret {subject.name}", len(found), "features") as advance,
            ThreadPoolExecutor(config.workers) as pool,
        ):
            features: list[FeatureInterpreted] = []
            for one in pool.map(lambda item: interpret(item[0], item[1], endpoint, config), found.items()):
                features.append(one)
                advance(1)
        results.append(_result(subject, features, store, config))
    return results


def interpret(
    feature: int, examples: FeatureExamples, endpoint: ChatEndpoint, config: AutoInterpConfig
) -> FeatureInterpreted:
    """Explain one feature and score the explanation."""
    said = endpoint.complete(explanation_prompt(examples.shown), config.max_explanation_tokens)
    explanation = said.split("fires on")[-1].split("activates on")[-1].strip().rstrip(".")
    answer = endpoint.complete(detection_prompt(explanation, examples.asked), 2 * len(examples.asked) + 5)
    predicted, fires = read_numbers(answer), [i for i, one in enumerate(examples.asked, 1) if one.fires]
    score, balanced = (None, None) if predicted is None else detection_scores(predicted, fires, len(examples.asked))
    return FeatureInterpreted(
        feature=feature,
        explanation=explanation,
        fires=fires,
        predicted=predicted,
        score=score,
        balanced_accuracy=balanced,
    )


def explanation_prompt(shown: Sequence[Example]) -> Messages:
    """Ask what the marked tokens have in common."""
    listed = "\n".join(f"{i}. {one.text(marked=True)}" for i, one in enumerate(shown, 1))
    return [
        {
            "role": "system",
            "content": "You explain features of a neural network. A feature fires on certain tokens. You get short texts, "
            "the strongest firings first, in which the tokens it fires on stand between << and >>. Say in one sentence of "
            "at most 20 words what it fires on: a word, a part of a word, punctuation, a meaning or a kind of text. Cover "
            "most of the marked tokens; do not list words. Answer in the form: This feature fires on ...",
        },
        {"role": "user", "content": f"The texts:\n\n{listed}"},
    ]


def detection_prompt(explanation: str, asked: Sequence[Example]) -> Messages:
    """Ask in which texts a feature with this explanation fires."""
    listed = "\n".join(f"{i}. {one.text()}" for i, one in enumerate(asked, 1))
    return [
        {
            "role": "system",
            "content": "A feature of a neural network fires on certain tokens. You get an explanation of what it fires on, "
            f"and {len(asked)} short texts. Answer with the numbers of the texts in which it should fire on at least one "
            'token, separated by commas, for example "2, 5, 11", or with the word None. Write nothing else.',
        },
        {"role": "user", "content": f"The feature fires on {explanation}.\n\nThe texts:\n\n{listed}"},
    ]


def read_numbers(answer: str) -> list[int] | None:
    """``"2, 5 and 11."`` -> ``[2, 5, 11]``, ``"None"`` -> ``[]``; None if it is neither numbers nor that word."""
    parts = [part for part in re.split(r"[\s,;]+|and", answer.strip().rstrip(".")) if part]
    if [part.lower() for part in parts] == ["none"]:
        return []
    return [int(part) for part in parts] if parts and all(part.isdecimal() for part in parts) else None


def detection_scores(predicted: Sequence[int], fires: Sequence[int], n: int) -> tuple[float, float | None]:
    """Share of n examples classified correctly, and its balanced form (None if all or none of them fire)."""
    right = [(i in predicted) == (i in fires) for i in range(1, n + 1)]
    positive = [ok for i, ok in enumerate(right, 1) if i in fires]
    negative = [ok for i, ok in enumerate(right, 1) if i not in fires]
    balanced = float((np.mean(positive) + np.mean(negative)) / 2) if positive and negative else None
    return float(np.mean(right)), balanced


def _result(
    subject: LoadedSAE, features: list[FeatureInterpreted], store: ActivationStore, config: AutoInterpConfig
) -> AutoInterpResult:
    reasons = reasons_before_running(subject)
    if not features:
        reasons.append("no feature fires at enough places of held-out text to be explained")
    read = [one for one in features if one.score is not None]
    mute = f"the judge {config.model!r} never answered with numbers, so nothing could be scored"
    return AutoInterpResult.of(
        subject,
        {"config": config.model_dump(mode="json"), "store": store.manifest.key},
        config.seed,
        reasons,
        inapplicable=[] if read else [mute],
        notes=[f"explained and judged by {config.model!r}; scores of different judges are not comparable"],
        score=Estimate.of_mean([one.score for one in read if one.score is not None], config.seed),
        balanced_accuracy=Estimate.of_mean(
            [one.balanced_accuracy for one in read if one.balanced_accuracy is not None], config.seed
        ),
        n_unread=len(features) - len(read),
        features=features,
    )
