"""Automated interpretability, with a judge and without: figures, and how both are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.evals.interp.autointerp import AutoInterpConfig, AutoInterpResult, evaluate_autointerp
from scansion.evals.interp.offline import OfflineInterpConfig, OfflineInterpResult, evaluate_offline_interp
from scansion.evals.interp.saebench import autointerp_json
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


@evaluations.register(AutoInterpConfig)
class AutoInterp(Evaluation[AutoInterpConfig, AutoInterpResult]):
    """How well a language model's explanations of features tell where they fire. Asks a chat endpoint that you name."""

    result = AutoInterpResult
    figures = (
        Figure("autointerp_score", "explanations", "up", read=lambda result: result.score, headline=True),
        Figure(
            "autointerp_balanced_accuracy",
            "explanations, balanced",
            "up",
            read=lambda result: result.balanced_accuracy,
        ),
    )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[AutoInterpResult]:
        """See :func:`evaluate_autointerp`."""
        tokenizer: Any = load_lm().tokenizer
        return evaluate_autointerp(saes, held_out, lambda token: str(tokenizer.decode([token])), self.config)

    def saebench(self, result: AutoInterpResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``autointerp``."""
        return autointerp_json(result, sae)


@evaluations.register(OfflineInterpConfig)
class OfflineInterp(Evaluation[OfflineInterpConfig, OfflineInterpResult]):
    """How well the token and the one before it predict where a feature fires, on new documents. Asks no judge."""

    result = OfflineInterpResult
    needs_lm = False
    figures = (
        Figure("token_auroc", "AUROC of tokens", "up", read=lambda result: result.auroc, headline=True),
        Figure("token_balanced_accuracy", "tokens, balanced", "up", read=lambda result: result.balanced_accuracy),
        Figure("token_auroc_null", "AUROC of tokens, chance", read=lambda result: result.null_auroc),
        Figure("token_share_above_null", "features above chance", "up", read=lambda result: result.share_above_null),
    )

    def run(
        self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM
    ) -> Sequence[OfflineInterpResult]:
        """See :func:`evaluate_offline_interp`."""
        return evaluate_offline_interp(saes, held_out, self.config)
