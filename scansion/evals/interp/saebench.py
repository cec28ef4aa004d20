"""The automated interpretability result in SAEBench's own layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from scansion.evals.base import LoadedSAE
from scansion.evals.interp.autointerp import AutoInterpResult
from scansion.evals.saebench import in_frame, value_of


def autointerp_json(result: AutoInterpResult, subject: LoadedSAE) -> dict[str, Any]:
    """``autointerp``; every feature's explanation is in the unstructured part, as SAEBench has it."""
    config = result.data["config"]
    scores = [one.score for one in result.features if one.score is not None]
    return in_frame(
        result,
        subject,
        "autointerp",
        {
            "model_name": subject.metadata.model,
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
