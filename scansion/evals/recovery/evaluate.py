"""Recovery of planted features as an evaluation of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import ValidationError

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.recovery.recovery import evaluate_recovery
from scansion.evals.recovery.result import RecoveryResult
from scansion.evals.registry import EvaluationConfig
from scansion.synth.config import SynthConfig
from scansion.synth.dictionary import PlantedDictionary
from scansion.synth.store import MODEL


class SyntheticConfig(EvaluationConfig):
    """Nothing can be set: the store says which world it holds."""

    evaluation: ClassVar[str] = "synthetic"


class SyntheticResult(EvalResult):
    """How much of the truth the SAE has found; ``recovery`` holds it all."""

    schema_version: int = 2  # 1: spurious_firing did not allow for a finite number of tokens
    eval: str = "synthetic"
    recovery: RecoveryResult


def evaluate_synthetic(
    subjects: Sequence[LoadedSAE], held_out: ActivationStore, config: SyntheticConfig
) -> list[SyntheticResult]:
    """Compare SAEs with the dictionary that the held-out store says its activations were made from.

    Raises:
        EvalError: the store does not hold planted activations, or an SAE belongs to another world.
    """
    corpus = held_out.identity.corpus
    if corpus.get("source") != MODEL:
        raise EvalError(
            f"{held_out.folder} holds activations of {held_out.identity.model}, whose true features are unknown; the "
            "synthetic evaluation needs a store made by `scansion synth` and an SAE trained on it"
        )
    try:
        world = SynthConfig.model_validate(corpus["world"])
    except (KeyError, ValidationError) as error:
        raise EvalError(f"{held_out.folder} was made from a world this version does not know; make it again") from error
    return [
        SyntheticResult(
            sae=one.sae,
            status=one.status,
            reasons=one.reasons,
            notes=["activations are made from known features, not from a language model"],
            sae_fingerprint=one.sae_fingerprint,
            sae_metadata=one.sae_metadata,
            data={**one.data, "config": config.model_dump(mode="json"), "store": held_out.manifest.key},
            seed=one.seed,
            recovery=one,
        )
        for one in evaluate_recovery(subjects, PlantedDictionary.plant(world), held_out)
    ]
