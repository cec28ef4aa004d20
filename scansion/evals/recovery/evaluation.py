"""Recovery of planted features as an evaluation of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import ValidationError

from scansion.activations import ActivationStore
from scansion.errors import ConfigError, EvalError
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.recovery.recovery import evaluate_recovery
from scansion.evals.recovery.result import RecoveryResult
from scansion.evals.registry import Evaluation, EvaluationConfig, Figure, LoadLM, evaluations
from scansion.synth.config import SynthConfig
from scansion.synth.dictionary import PlantedDictionary

# The bound and the unbound true features of a result, either of which a world may lack.
_BOUND, _UNBOUND = "recovery.groups.bound", "recovery.groups.unbound"


class SyntheticConfig(EvaluationConfig):
    """Nothing can be set: the store says which world it holds."""

    evaluation: ClassVar[str] = "synthetic"


class SyntheticResult(EvalResult):
    """How much of the truth the SAE has found; ``recovery`` holds it all."""

    schema_version: int = 2  # 1: spurious_firing did not allow for a finite number of tokens
    eval: str = "synthetic"
    recovery: RecoveryResult


def _if_planted(config: SyntheticConfig) -> bool:
    return True  # whether a world has features of this kind is known only from its store


@evaluations.register(SyntheticConfig)
class Synthetic(Evaluation[SyntheticConfig, SyntheticResult]):
    """How much of a known dictionary the SAE has found, on activations made by `scansion synth`."""

    result = SyntheticResult
    needs_lm = False
    figures = (
        Figure("mmcs", "MMCS", "up", "recovery.groups.all.mmcs", True),
        Figure("mmcs_chance", "MMCS, chance", None, "recovery.mmcs_chance", True),
        Figure("recovered", "recovered", "up", "recovery.groups.all.recovered", True),
        Figure("recovered_bound", "recovered, bound", "up", f"{_BOUND}.recovered", True, only_if=_if_planted),
        Figure("recovered_unbound", "recovered, unbound", "up", f"{_UNBOUND}.recovered", True, only_if=_if_planted),
        Figure(
            "profile_overlap", "profile overlap, bound", "up", f"{_BOUND}.firing.overlap", True, only_if=_if_planted
        ),
        Figure(
            "profile_overlap_chance",
            "profile overlap, chance",
            None,
            f"{_BOUND}.firing.overlap_chance",
            True,
            only_if=_if_planted,
        ),
        Figure("mask_overlap", "mask overlap, bound", "up", f"{_BOUND}.mask.overlap", only_if=_if_planted),
        Figure(
            "mask_overlap_chance", "mask overlap, chance", None, f"{_BOUND}.mask.overlap_chance", only_if=_if_planted
        ),
        Figure("mask_iou", "mask IoU, bound", "up", f"{_BOUND}.mask.iou", only_if=_if_planted),
        Figure("mask_iou_chance", "mask IoU, chance", None, f"{_BOUND}.mask.iou_chance", only_if=_if_planted),
        Figure("spurious_firing", "spurious, unbound", "down", "recovery.spurious_firing", only_if=_if_planted),
    )

    def check(self, held_out: ActivationStore) -> None:
        """Raise :class:`ConfigError` unless the store holds planted activations."""
        if not held_out.identity.is_planted:
            raise ConfigError(
                f"{held_out.place} holds activations of {held_out.identity.model}, whose true features are unknown; "
                "the synthetic evaluation needs a store made by `scansion synth` and an SAE trained on it"
            )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[SyntheticResult]:
        """Compare SAEs with the dictionary that the store says its activations were made from.

        Raises:
            ConfigError: the store does not hold planted activations.
            EvalError: its world is of another version, or an SAE belongs to another world.
        """
        self.check(held_out)
        try:
            world = SynthConfig.model_validate(held_out.identity.corpus["world"])
        except (KeyError, ValidationError) as error:
            raise EvalError(
                f"{held_out.place} was made from a world this version does not know; make it again"
            ) from error
        return [
            SyntheticResult.of(
                sae,
                {**one.data, **self.data(held_out)},
                one.seed,
                one.reasons,
                notes=["activations are made from known features, not from a language model"],
                recovery=one,
            )
            for sae, one in zip(saes, evaluate_recovery(saes, PlantedDictionary.plant(world), held_out), strict=True)
        ]
