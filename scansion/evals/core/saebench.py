"""Core results in SAEBench's own layout."""

from __future__ import annotations

from typing import Any

from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreResult
from scansion.evals.saebench import in_frame, value_of


def core_json(result: CoreResult, subject: LoadedSAE) -> dict[str, Any]:
    """``core``; ``explained_variance`` is SAEBench's own formula, ours is in the unstructured part as ``fve``.

    Figures that are not measured are null: norms of the output, consistency of firing, and KL under ablation.
    """
    alive = 1 - result.dead_share
    n_tokens, config = result.n_tokens, result.data["config"]
    return in_frame(
        result,
        subject,
        "core",
        {
            "model_name": subject.metadata.model,
            "context_size": subject.metadata.context_length,
            "batch_size_prompts": config["batch_contexts"],
            "n_eval_reconstruction_batches": None,
            "exclude_special_tokens_from_reconstruction": not config["use_position_0"],
            "dataset": result.data["contexts"],
        },
        {
            "model_behavior_preservation": {
                "kl_div_score": None,
                "kl_div_with_ablation": None,
                "kl_div_with_sae": result.kl,
            },
            "model_performance_preservation": {
                "ce_loss_score": value_of(result.ce_loss_recovered),
                "ce_loss_with_ablation": result.ce_loss_ablated,
                "ce_loss_with_sae": result.ce_loss,
                "ce_loss_without_sae": result.ce_loss_clean,
            },
            "reconstruction_quality": {
                "explained_variance": result.saebench_explained_variance,
                "explained_variance_legacy": None,
                "mse": None,
                "cossim": result.cosine,
            },
            "shrinkage": {
                "l2_norm_in": None,
                "l2_norm_out": None,
                "l2_ratio": None,
                "relative_reconstruction_bias": None,
            },
            "sparsity": {"l0": result.l0, "l1": result.l1},
            "token_stats": {
                "total_tokens_eval_reconstruction": n_tokens,
                "total_tokens_eval_sparsity_variance": n_tokens,
            },
            "misc_metrics": {
                "freq_over_1_percent": None,
                "freq_over_10_percent": result.dense_share,
                "normalized_freq_over_1_percent": None,
                "normalized_freq_over_10_percent": None,
                "average_max_encoder_cosine_sim": None,
                "average_max_decoder_cosine_sim": None,
                "frac_alive": alive,
            },
        },
        [],
    )
