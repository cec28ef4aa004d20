"""Targeted probe perturbation and spurious correlation removal: their figures, and how they are run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from scansion.activations import ActivationStore
from scansion.evals.ablation.scr import ScrConfig, ScrDataset, ScrResult, evaluate_scr
from scansion.evals.ablation.tpp import TppConfig, TppDataset, TppResult, evaluate_tpp
from scansion.evals.base import LoadedSAE, in_frame, value_of
from scansion.evals.probing.sets import ASSET
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.lm import HookPoint


def _ns(config: TppConfig | ScrConfig) -> Iterable[int]:
    return config.n_values


@evaluations.register(TppConfig)
class Tpp(Evaluation[TppConfig, TppResult]):
    """Targeted probe perturbation: whether ablating the features of one class hurts the probe of that class alone."""

    result = TppResult
    reads_store = False
    figures = (
        Figure(
            "tpp_{n}",
            "TPP, {n} ablated",
            "up",
            read=lambda result: {n: one.total for n, one in result.by_n.items()},
            headline=(20,),
            numbers=_ns,
        ),
    )

    def assets(self) -> list[str]:
        """The labelled texts."""
        return [ASSET]

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[TppResult]:
        """See :func:`evaluate_tpp`."""
        return evaluate_tpp(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: TppResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``tpp``."""

        def figures(one: TppResult | TppDataset) -> dict[str, float | None]:
            found: dict[str, float | None] = {}
            for n, scores in one.by_n.items():
                found[f"tpp_threshold_{n}_total_metric"] = scores.total.value
                found[f"tpp_threshold_{n}_intended_diff_only"] = scores.intended.value
                found[f"tpp_threshold_{n}_unintended_diff_only"] = scores.unintended.value
            return found

        return in_frame(
            result,
            sae,
            "tpp",
            _perturbation_config(result, sae, "train_per_class", "test_per_class", perform_scr=False),
            {"tpp_metrics": figures(result)},
            [{"dataset_name": f"sae_probes/{one.name}_tpp_results", **figures(one)} for one in result.datasets],
        )


@evaluations.register(ScrConfig)
class Scr(Evaluation[ScrConfig, ScrResult]):
    """Spurious correlation removal: whether ablating a few features rids a probe of a bias in its training texts."""

    result = ScrResult
    reads_store = False
    figures = (Figure("scr_{n}", "SCR, {n} ablated", "up", read="by_n", headline=(20,), numbers=_ns),)

    def assets(self) -> list[str]:
        """The labelled texts."""
        return [ASSET]

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[ScrResult]:
        """See :func:`evaluate_scr`."""
        return evaluate_scr(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: ScrResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``scr``; null where the bias costs the probe no more than chance."""

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
            sae,
            "scr",
            _perturbation_config(result, sae, "train_per_quadrant", "test_per_quadrant", perform_scr=True),
            {"scr_metrics": means},
            [
                {"dataset_name": f"sae_probes/{one.name}_scr_results", **figures}
                for one, figures in zip(result.datasets, details, strict=True)
            ],
        )


def _perturbation_config(
    result: ScrResult | TppResult, sae: LoadedSAE, train: str, test: str, *, perform_scr: bool
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
        "model_name": sae.metadata.model,
        "n_values": list(config["n_values"]),
    }
