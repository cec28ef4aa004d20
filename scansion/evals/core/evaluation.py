"""The core evaluation: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE, in_frame, value_of
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


def _by_position(name: str) -> Callable[[CoreResult], tuple[Sequence[int], Sequence[float | None]]]:
    # Results of earlier versions lack some.
    return lambda result: (result.positions, result.by_position.get(name, [None] * len(result.positions)))


def _with_lm(config: CoreConfig) -> bool:
    return config.loss_contexts > 0


@evaluations.register(CoreConfig)
class Core(Evaluation[CoreConfig, CoreResult]):
    """Reconstruction, sparsity and loss recovered on held-out text. Always run: it names degenerate dictionaries."""

    result = CoreResult
    needs_lm = False  # only for the loss, and not on planted activations
    decides = True
    figures = (
        # The headline: a few tokens with huge norms can be most of the other one.
        Figure(
            "fve_without_outliers",
            "FVE w/o outliers",
            "up",
            headline=True,
            only_if=lambda _: True,
            by_position=_by_position("fve_without_outliers"),
        ),
        Figure(
            "fve",
            "FVE, all tokens",
            "up",
            headline=True,
            by_position=_by_position("fve"),
            superseded_by="fve_without_outliers",
        ),
        Figure("outlier_variance_share", "variance of outliers", only_if=lambda _: True),
        Figure("normalised_mse", "normalised MSE", "down"),
        Figure("cosine", "cosine", "up"),
        Figure("l0", "L0", headline=True, digits=1, by_position=_by_position("l0")),
        Figure("l1", "L1"),
        Figure("dead_share", "dead", "down", headline=True),
        Figure("dense_share", "dense", "down"),
        Figure("duplicate_share", "duplicates", "down"),
        Figure("ce_loss_recovered", "CE recovered", "up", headline=True, only_if=_with_lm),
        Figure("ce_loss", "CE loss, nats", "down", only_if=_with_lm),
        Figure("kl", "KL, nats", "down", only_if=_with_lm),
    )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[CoreResult]:
        """See :func:`evaluate_core`."""
        return evaluate_core(saes, held_out, load_lm, self.config)

    def saebench(self, result: CoreResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``core``; ``explained_variance`` is SAEBench's own formula, ours is in the unstructured part as ``fve``.

        Figures that are not measured are null: norms of the output, consistency of firing, and KL under ablation.
        """
        alive = 1 - result.dead_share
        n_tokens, config = result.n_tokens, result.data["config"]
        return in_frame(
            result,
            sae,
            "core",
            {
                "model_name": sae.metadata.model,
                "context_size": sae.metadata.context_length,
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
