"""Automated interpretability, with a judge and without: figures, and how both are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE, in_frame, value_of
from scansion.evals.interp.autointerp import AutoInterpConfig, AutoInterpResult, evaluate_autointerp
from scansion.evals.interp.offline import OfflineInterpConfig, OfflineInterpResult, evaluate_offline_interp
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


@evaluations.register(AutoInterpConfig)
class AutoInterp(Evaluation[AutoInterpConfig, AutoInterpResult]):
    """How well a language model's explanations of features tell where they fire. Asks a chat endpoint that you name."""

    result = AutoInterpResult
    figures = (
        Figure("autointerp_score", "explanations", "up", read="score", headline=True),
        Figure("autointerp_balanced_accuracy", "explanations, balanced", "up", read="balanced_accuracy"),
    )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[AutoInterpResult]:
        """See :func:`evaluate_autointerp`."""
        tokenizer: Any = load_lm().tokenizer
        return evaluate_autointerp(saes, held_out, lambda token: str(tokenizer.decode([token])), self.config)

    def saebench(self, result: AutoInterpResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``autointerp``; every feature's explanation is in the unstructured part, as SAEBench has it."""
        config = result.data["config"]
        scores = [one.score for one in result.features if one.score is not None]
        return in_frame(
            result,
            sae,
            "autointerp",
            {
                "model_name": sae.metadata.model,
                "n_latents": config["n_features"],
                "dead_latent_threshold": config["least_firings"],
                "random_seed": config["seed"],
                "max_tokens_in_explanation": config["max_explanation_tokens"],
            },
            {
                "autointerp": {
                    "autointerp_score": value_of(result.score),
                    "autointerp_std_dev": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                }
            },
            [],
            {
                str(one.feature): {
                    "latent": one.feature,
                    "explanation": one.explanation,
                    "predictions": one.predicted,
                    "correct seqs": one.fires,
                    "score": one.score,
                }
                for one in result.features
            },
        )


@evaluations.register(OfflineInterpConfig)
class OfflineInterp(Evaluation[OfflineInterpConfig, OfflineInterpResult]):
    """How well the token and the one before it predict where a feature fires, on new documents. Asks no judge."""

    result = OfflineInterpResult
    needs_lm = False
    figures = (
        Figure("token_auroc", "AUROC of tokens", "up", read="auroc", headline=True),
        Figure("token_balanced_accuracy", "tokens, balanced", "up", read="balanced_accuracy"),
        Figure("token_auroc_null", "AUROC of tokens, chance", read="null_auroc"),
        Figure("token_share_above_null", "features above chance", "up", read="share_above_null"),
    )

    def run(
        self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM
    ) -> Sequence[OfflineInterpResult]:
        """See :func:`evaluate_offline_interp`."""
        return evaluate_offline_interp(saes, held_out, self.config)
