"""The unlearning result in SAEBench's own layout."""

from __future__ import annotations

from typing import Any

from scansion.evals.base import LoadedSAE
from scansion.evals.saebench import in_frame
from scansion.evals.unlearning.result import UnlearningResult


def unlearning_json(result: UnlearningResult, subject: LoadedSAE) -> dict[str, Any]:
    """``unlearning``; the questions' source is in the unstructured part and in the names of the data sets."""
    config = result.data["config"]
    return in_frame(
        result,
        subject,
        "unlearning",
        {
            "model_name": subject.metadata.model,
            "random_seed": config["seed"],
            "dataset_names": [result.source],
            "intervention_method": "clamp_feature_activation",
            "retain_thresholds": list(config["retain_thresholds"]),
            "n_features_list": list(config["n_features"]),
            "multipliers": list(config["multipliers"]),
            "llm_batch_size": config["batch_size"],
            "llm_dtype": result.data["lm_dtype"],
        },
        {"unlearning": {"unlearning_score": result.score}},
        [],
    )
