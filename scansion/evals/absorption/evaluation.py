"""Absorption: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scansion.activations import ActivationStore
from scansion.evals.absorption.evaluate import AbsorptionConfig, evaluate_absorption
from scansion.evals.absorption.result import AbsorptionResult
from scansion.evals.base import LoadedSAE, in_frame, value_of
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
        Figure("main_features", "features per letter", read="mean_main_features", digits=2),
        Figure("letter_f1", "F1 of letter probes", "up", read="sae_f1"),
    )

    @property
    def encodes_single_tokens(self) -> bool:
        """It reads the token before each answer."""
        return True

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[AbsorptionResult]:
        """See :func:`evaluate_absorption`."""
        return evaluate_absorption(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: AbsorptionResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``absorption_first_letter``; its figures are null where the evaluation does not apply."""
        config, letters = result.data["config"], result.letters

        def deviation(values: list[float]) -> float | None:
            return float(np.std(values, ddof=1)) if len(values) > 1 else None

        return in_frame(
            result,
            sae,
            "absorption_first_letter",
            {
                "model_name": sae.metadata.model,
                "random_seed": config["seed"],
                "f1_jump_threshold": 0.03,
                "max_k_value": config["max_k"],
                "prompt_template": "{word} has the first letter:",
                "prompt_token_pos": -6,
                "llm_batch_size": config["batch_size"],
                "min_GT_probe_f1": config["min_probe_f1"],
                "min_feats_for_eval": config["min_letters"],
            },
            {
                "mean": {
                    "mean_absorption_fraction_score": value_of(result.absorption_fraction),
                    "mean_full_absorption_score": value_of(result.full_absorption_rate),
                    "mean_num_split_features": result.mean_main_features,
                    "std_dev_absorption_fraction_score": deviation([one.absorption_fraction for one in letters]),
                    "std_dev_full_absorption_score": deviation([one.full_absorption_rate for one in letters]),
                    "std_dev_num_split_features": deviation([float(len(one.features)) for one in letters]),
                }
            },
            [
                {
                    "first_letter": one.letter,
                    "mean_absorption_fraction": one.absorption_fraction,
                    "full_absorption_rate": one.full_absorption_rate,
                    "num_full_absorption": round(one.full_absorption_rate * one.n_words),
                    "num_probe_true_positives": one.n_words,
                    "num_split_features": len(one.features),
                }
                for one in letters
            ],
        )
