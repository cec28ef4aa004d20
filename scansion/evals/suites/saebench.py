"""SAEBench's own evaluations, in an environment that has it; called by :mod:`scansion.evals.suites.runner`.

Of those it has, unlearning, RAVEL and automatic interpretation are left out: they need gated data, data of the hub with a large
model, or a paid service.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scansion.errors import EvalError

Job = dict[str, Any]
Found = tuple[dict[str, Any], dict[str, Any]]
"""What SAEBench reports, whole, and the figures of it that our tables show."""
_NAME = "scansion"


def run(adapter: Any, job: Job, folder: Path) -> dict[str, Any]:
    """The evaluations that the job names; ``raw`` holds what each reports.

    Raises:
        EvalError: an evaluation gives no result.
    """
    raw: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in job["evaluations"]:
        raw[name], found = _EVALUATIONS[name](adapter, job, folder)
        figures |= found
    return {"raw": raw, **figures}


def _sparse_probing(adapter: Any, job: Job, folder: Path) -> Found:
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.main import run_eval

    settings = {**_of_texts(job), "k_values": job["k_values"]}
    settings |= {"probe_train_set_size": job["train_size"], "probe_test_set_size": job["test_size"]}
    config = SparseProbingEvalConfig(**settings | ({"dataset_names": job["datasets"]} if job["datasets"] else {}))
    (result,) = run_eval(
        config, [(_NAME, adapter)], job["device"], str(folder / "out"), artifacts_path=str(folder / "lm")
    ).values()
    metrics = {**result["eval_result_metrics"]["llm"], **result["eval_result_metrics"]["sae"]}
    return result, {
        "test_accuracy": metrics.get("sae_test_accuracy"),
        "lm_accuracy": metrics.get("llm_test_accuracy"),
        "top_k_accuracy": _by_number(metrics, "sae_top_{}_test_accuracy", job["k_values"]),
    }


def _core(adapter: Any, job: Job, folder: Path) -> Found:
    from sae_bench.evals.core.main import multiple_evals

    # It reports its own errors to the log, and goes on.
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("sae_bench.evals.core.main").addHandler(handler)
    results = multiple_evals(
        [(_NAME, adapter)],
        n_eval_reconstruction_batches=job["core_batches"],
        n_eval_sparsity_variance_batches=job["core_batches"],
        eval_batch_size_prompts=job["lm_batch_size"],
        compute_featurewise_density_statistics=True,  # without these two its result has no valid form
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=job["core_dataset"],
        context_size=job["context_length"],
        output_folder=str(folder / "core"),
        device=job["device"],
    )
    if not results:
        raise EvalError(f"SAEBench's core gives no result: {said[-1] if said else 'it does not say why'}")
    (file,) = (folder / "core").glob("*.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    del result["eval_result_details"]  # figures of every feature, 100 bytes each
    metrics = result["eval_result_metrics"]
    return result, {
        "explained_variance": metrics["reconstruction_quality"]["explained_variance"],
        "ce_loss_score": metrics["model_performance_preservation"]["ce_loss_score"],
        "kl_div_score": metrics["model_behavior_preservation"]["kl_div_score"],
        "l0": metrics["sparsity"]["l0"],
    }


def _ablation(adapter: Any, job: Job, folder: Path, *, scr: bool) -> Found:
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.evals.scr_and_tpp.main import run_eval

    config = ScrAndTppEvalConfig(
        **_of_texts(job),
        perform_scr=scr,
        train_set_size=job["train_size"],
        test_set_size=job["test_size"],
        n_values=[n for n in job["n_values"] if n <= adapter.cfg.d_sae],
    )
    if job["datasets"]:
        config.dataset_names = [name for name in config.dataset_names if name in job["datasets"]]
    (result,) = run_eval(
        config, [(_NAME, adapter)], job["device"], str(folder / "out"), save_activations=False,
        artifacts_path=str(folder / "lm"),
    ).values()  # fmt: skip
    kind, name = ("scr", "scr_metric_threshold_{}") if scr else ("tpp", "tpp_threshold_{}_total_metric")
    return result, {kind: _by_number(result["eval_result_metrics"][f"{kind}_metrics"], name, config.n_values)}


def _absorption(adapter: Any, job: Job, folder: Path) -> Found:
    from sae_bench.evals.absorption import main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    # Its files would be written into the package, by the names of model and SAE, and read again for another of these names.
    probes, sparse = {"probes_dir": folder / "probes"}, folder / "k_sparse"
    main.run_k_sparse_probing_experiment = partial(
        main.run_k_sparse_probing_experiment, **probes, experiment_dir=sparse
    )
    main.run_feature_absortion_experiment = partial(
        main.run_feature_absortion_experiment,
        **probes,
        experiment_dir=folder / "absorption",
        sparse_probing_experiment_dir=sparse,
    )
    config = AbsorptionEvalConfig(
        model_name=job["model"],
        random_seed=job["seed"],
        llm_batch_size=job["lm_batch_size"],
        min_feats_for_eval=job["min_letters"],
    )
    (folder / "out").mkdir(exist_ok=True)  # it writes there without making it
    here = Path.cwd()
    os.chdir(folder)  # it writes files into the working directory as well, and reads no data set from there
    try:
        results = main.run_eval(config, [(_NAME, adapter)], job["device"], str(folder / "out"))
    finally:
        os.chdir(here)
    if not results:
        raise EvalError(
            "SAEBench's absorption gives no result: the language model does not tell "
            f"{config.min_feats_for_eval} first letters apart; set min_letters lower, or use a larger model"
        )
    (result,) = results.values()
    means = result["eval_result_metrics"]["mean"]
    return result, {
        "absorption_fraction": means["mean_absorption_fraction_score"],
        "full_absorption": means["mean_full_absorption_score"],
    }


def _of_texts(job: Job) -> dict[str, Any]:
    """Settings that evaluations of labelled texts share."""
    return {
        "model_name": job["model"],
        "random_seed": job["seed"],
        "context_length": job["context_length"],
        "llm_batch_size": job["lm_batch_size"],
        "llm_dtype": "float32",
    }


def _by_number(metrics: Mapping[str, Any], name: str, numbers: list[int]) -> dict[int, float]:
    found = {n: metrics.get(name.format(n)) for n in numbers}
    return {n: value for n, value in found.items() if value is not None}


_EVALUATIONS: dict[str, Callable[[Any, Job, Path], Found]] = {
    "sparse_probing": _sparse_probing,
    "core": _core,
    "scr": partial(_ablation, scr=True),
    "tpp": partial(_ablation, scr=False),
    "absorption": _absorption,
}
