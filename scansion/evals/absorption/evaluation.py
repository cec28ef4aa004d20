"""Absorption: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.absorption.evaluate import AbsorptionConfig, evaluate_absorption
from scansion.evals.absorption.result import AbsorptionResult
from scansion.evals.absorption.saebench import absorption_json
from scansion.evals.base import LoadedSAE
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.lm import HookPoint


@evaluations.register(AbsorptionConfig)
class AbsorptionOfFirstLetters(Evaluation[AbsorptionConfig, AbsorptionResult]):
    """How often a feature for a first letter stays silent because a feature of the word itself stands in for it."""

    result = AbsorptionResult
    reads_store = False
    figures = (
        Figure("absorption_fraction", "absorption fraction", "down", headline=True),
        Figure("full_absorption_rate", "full absorption", "down"),
        Figure("main_features", "features per letter", read=lambda result: result.mean_main_features, digits=2),
        Figure("letter_f1", "F1 of letter probes", "up", read=lambda result: result.sae_f1),
    )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[AbsorptionResult]:
        """See :func:`evaluate_absorption`."""
        return evaluate_absorption(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: AbsorptionResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``absorption_first_letter``."""
        return absorption_json(result, sae)
