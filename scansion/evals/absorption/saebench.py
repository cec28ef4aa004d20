"""The absorption result in SAEBench's own layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from scansion.evals.absorption.result import AbsorptionResult
from scansion.evals.base import LoadedSAE
from scansion.evals.saebench import in_frame, value_of


def absorption_json(result: AbsorptionResult, subject: LoadedSAE) -> dict[str, Any]:
    """``absorption_first_letter``; its figures are null where the evaluation does not apply."""
    config, letters = result.data["config"], result.letters

    def deviation(values: list[float]) -> float | None:
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    return in_frame(
        result,
        subject,
        "absorption_first_letter",
        {
            "model_name": subject.metadata.model,
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
