"""Recovery of planted features as an evaluation of a run, beside those on language models."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.recovery.recovery import evaluate_recovery
from scansion.evals.recovery.result import RecoveryResult
from scansion.synth.config import SynthConfig
from scansion.synth.dictionary import PlantedDictionary
from scansion.synth.store import MODEL


class SyntheticConfig(BaseModel):
    """Nothing can be set: the store says which world it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticResult(EvalResult):
    """How much of the truth the SAE has found; ``recovery`` holds it all."""

    eval: str = "synthetic"
    recovery: RecoveryResult

    def headline(self) -> dict[str, float | None]:
        """Mean largest cosine, its chance level, the share recovered, and the match of position profiles."""
        groups = self.recovery.groups
        if self.status != "ok" or "all" not in groups:
            return {}
        found: dict[str, float | None] = {
            "mmcs": groups["all"].mmcs,
            "mmcs_chance": self.recovery.mmcs_chance,
            "recovered": groups["all"].recovered,
        }
        if "bound" in groups:
            profile = groups["bound"].firing
            found |= {
                "recovered_bound": groups["bound"].recovered,
                "profile_overlap": profile.overlap,
                "profile_overlap_chance": profile.overlap_chance,
            }
        return found


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
            f"{held_out.folder} holds activations of {held_out.identity.model}, whose true features nobody knows; the "
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
