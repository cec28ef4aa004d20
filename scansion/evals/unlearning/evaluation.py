"""Unlearning: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.evals.probing.sets import ASSET
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.evals.unlearning.evaluate import UnlearningConfig, evaluate_unlearning
from scansion.evals.unlearning.result import UnlearningResult
from scansion.evals.unlearning.saebench import unlearning_json
from scansion.lm import HookPoint


@evaluations.register(UnlearningConfig)
class Unlearning(Evaluation[UnlearningConfig, UnlearningResult]):
    """How many questions on one subject the model no longer answers with that subject's features clamped."""

    result = UnlearningResult
    reads_store = False
    figures = (
        Figure("unlearning", "unlearning", "up", read=lambda result: result.score, headline=True),
        Figure("unlearning_held_out", "unlearning, held out", "up", read=lambda result: result.held_out),
        Figure(
            "unlearning_control",
            "unlearning, other features",
            read=lambda result: result.control and 1 - result.control.forget_kept,
        ),
        Figure("forget_accuracy", "accuracy to forget, untouched"),
        Figure("retain_accuracy", "accuracy to keep, untouched"),
    )

    @property
    def tokens_of_own_text(self) -> int:
        """Of a question with a choice."""
        return self.config.context_length or 0

    def assets(self) -> list[str]:
        """The questions and texts, unless they come from the hub."""
        return [ASSET] if self.config.source == "stand_in" else []

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[UnlearningResult]:
        """See :func:`evaluate_unlearning`."""
        return evaluate_unlearning(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: UnlearningResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``unlearning``."""
        return unlearning_json(result, sae)
