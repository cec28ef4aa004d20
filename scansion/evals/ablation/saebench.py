"""The SCR and TPP results in SAEBench's own layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from scansion.evals.ablation.scr import ScrDataset, ScrResult
from scansion.evals.ablation.tpp import TppDataset, TppResult
from scansion.evals.base import LoadedSAE
from scansion.evals.saebench import in_frame, value_of


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
    )


def scr_json(result: ScrResult, subject: LoadedSAE) -> dict[str, Any]:
    """``scr``; null where the bias costs the probe no more than chance."""

    def figures(one: ScrDataset) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for number, direction in enumerate(one.directions, start=1):
            for n, score in direction.by_n.items():
                found[f"scr_dir{number}_threshold_{n}"] = value_of(score)
        return found | {f"scr_metric_threshold_{n}": value_of(score) for n, score in one.scored.by_n.items()}

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
    )


def _perturbation_config(
    result: ScrResult | TppResult, subject: LoadedSAE, train: str, test: str, *, perform_scr: bool
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
