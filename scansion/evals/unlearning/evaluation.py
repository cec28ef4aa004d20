"""Unlearning: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE, in_frame
from scansion.evals.probing.sets import ASSET
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.evals.unlearning.evaluate import UnlearningConfig, evaluate_unlearning
from scansion.evals.unlearning.result import UnlearningResult
from scansion.lm import HookPoint


@evaluations.register(UnlearningConfig)
class Unlearning(Evaluation[UnlearningConfig, UnlearningResult]):
    """How many questions on one subject the model no longer answers with that subject's features clamped."""

    result = UnlearningResult
    reads_store = False
    figures = (
        Figure("unlearning", "unlearning", "up", read="score", headline=True),
        Figure("unlearning_held_out", "unlearning, held out", "up", read="held_out"),
        Figure(
            "unlearning_control",
            "unlearning, other features",
            read=lambda result: result.control and 1 - result.control.forget_kept,
        ),
        Figure("forget_accuracy", "accuracy to forget, untouched"),
        Figure("retain_accuracy", "accuracy to keep, untouched"),
    )

    def assets(self) -> list[str]:
        """The questions and texts, unless they come from the hub."""
        return [ASSET] if self.config.source == "stand_in" else []

    @property
    def encodes_single_tokens(self) -> bool:
        """It leaves out tokens in the middle of texts."""
        return True

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[UnlearningResult]:
        """See :func:`evaluate_unlearning`."""
        return evaluate_unlearning(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: UnlearningResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``unlearning``; the questions' source is in the unstructured part and in the names of the data sets."""
        config = result.data["config"]
        return in_frame(
            result,
            sae,
            "unlearning",
            {
                "model_name": sae.metadata.model,
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
