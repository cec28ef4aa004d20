"""The results of further evaluations in SAEBench's own layouts, one function a result."""

from __future__ import annotations

from typing import Any

import numpy as np

from scansion.evals.ablation.scr import ScrDataset, ScrResult
from scansion.evals.ablation.tpp import TppDataset, TppResult
from scansion.evals.absorption.result import AbsorptionResult
from scansion.evals.base import Estimate, LoadedSAE
from scansion.evals.extra_result import ExtraResult
from scansion.evals.interp.autointerp import AutoInterpResult
from scansion.evals.saebench import in_frame
from scansion.evals.unlearning.result import UnlearningResult


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
                "mean_absorption_fraction_score": _value(result.absorption_fraction),
                "mean_full_absorption_score": _value(result.full_absorption_rate),
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
        _ours(result),
    )


def tpp_json(result: TppResult, subject: LoadedSAE) -> dict[str, Any]:
    """``tpp``."""

    def figures(one: TppResult | TppDataset) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for n, scores in one.by_n.items():
            found[f"tpp_threshold_{n}_total_metric"] = scores.total.value
            found[f"tpp_threshold_{n}_intended_diff_only"] = scores.intended.value
            found[f"tpp_threshold_{n}_unintended_diff_only"] = scores.unintended.value
        return found

    return in_frame(
        result,
        subject,
        "tpp",
        _perturbation_config(result, subject, "train_per_class", "test_per_class", perform_scr=False),
        {"tpp_metrics": figures(result)},
        [{"dataset_name": f"sae_probes/{one.name}_tpp_results", **figures(one)} for one in result.datasets],
        _ours(result),
    )


def scr_json(result: ScrResult, subject: LoadedSAE) -> dict[str, Any]:
    """``scr``; null where the bias costs the probe no more than chance."""

    def figures(one: ScrDataset) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for number, direction in enumerate(one.directions, start=1):
            for n, score in direction.by_n.items():
                found[f"scr_dir{number}_threshold_{n}"] = _value(score)
        return found | {f"scr_metric_threshold_{n}": _value(score) for n, score in one.scored.by_n.items()}

    details = [figures(one) for one in result.datasets]
    names = list(details[0])
    means = {
        name: float(np.mean(values)) if (values := [v for one in details if (v := one[name]) is not None]) else None
        for name in names
    }
    return in_frame(
        result,
        subject,
        "scr",
        _perturbation_config(result, subject, "train_per_quadrant", "test_per_quadrant", perform_scr=True),
        {"scr_metrics": means},
        [
            {"dataset_name": f"sae_probes/{one.name}_scr_results", **figures}
            for one, figures in zip(result.datasets, details, strict=True)
        ],
        _ours(result),
    )


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
                "autointerp_score": _value(result.score),
                "autointerp_std_dev": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            }
        },
        [],
        {
            **_ours(result),
            **{
                str(one.feature): {
                    "latent": one.feature,
                    "explanation": one.explanation,
                    "predictions": one.predicted,
                    "correct seqs": one.fires,
                    "score": one.score,
                }
                for one in result.features
            },
        },
    )


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
        _ours(result),
    )


def _perturbation_config(
    result: ExtraResult, subject: LoadedSAE, train: str, test: str, *, perform_scr: bool
) -> dict[str, Any]:
    config = result.data["config"]
    return {
        "random_seed": config["seed"],
        "dataset_names": [f"sae_probes/{name}" for name in config["datasets"]],
        "perform_scr": perform_scr,
        "train_set_size": config[train],
        "test_set_size": config[test],
        "context_length": config["context_length"],
        "sae_batch_size": config["lm_batch_size"],
        "llm_batch_size": config["lm_batch_size"],
        "llm_dtype": result.data["lm_dtype"],
        "model_name": subject.metadata.model,
        "n_values": list(config["n_values"]),
    }


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _ours(result: ExtraResult) -> dict[str, Any]:
    """Status, reasons, notes, intervals and all else that SAEBench has no place for."""
    return {"scansion": result.model_dump(mode="json")}
