"""Sparse probing results in SAEBench's own layout, so that its plots and scripts read them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from scansion.evals.hub_sets import HUB_SETS
from scansion.evals.order_sets import ORDER_PREFIX
from scansion.evals.probing_result import DatasetResult, SparseProbingResult, TaskResult
from scansion.evals.result import Estimate, Subject
from scansion.files import fingerprint
from scansion.lm import HookPoint

# SAEBench's layout has a field for each of these, null where the k was not asked for, and for no other.
_K_FIELDS = (1, 2, 5, 10, 20, 50, 100)
_NAMESPACE = uuid.UUID("6f0f9f0e-5a3c-4f55-9b0f-5d2f7f0c8e11")


def sparse_probing_json(
    result: SparseProbingResult, subject: Subject, epoch_millis: int | None = None
) -> dict[str, Any]:
    """``result`` as SAEBench 0.6 would have written it.

    Data sets of the asset are named ``sae_probes/...``, also where they stand in for one that SAEBench uses, for their
    texts are others; where texts were not pooled by their mean, as SAEBench pools them, the name ends in the pooling.
    Status, reasons, pooling, controls and intervals, for which it has no place, are under
    ``eval_result_unstructured["scansion"]``, beside the accuracies of single tasks, which SAEBench keeps there too.

    Args:
        result: of ``subject``.
        subject: the SAE.
        epoch_millis: the time to write in it; default now.
    """
    config, metadata = result.data["config"], subject.metadata
    overall = {**_accuracies(result, "lm"), **_accuracies(result, "sae")}
    return {
        "eval_type_id": "sparse_probing",
        "eval_config": {
            "random_seed": config["seed"],
            "dataset_names": [_name(one, result.pooling) for one in result.datasets],
            "probe_train_set_size": config["train_size"],
            "probe_test_set_size": config["test_size"],
            "context_length": config["context_length"],
            # The SAE reads the LM's batches.
            "sae_batch_size": config["lm_batch_size"],
            "llm_batch_size": config["lm_batch_size"],
            "llm_dtype": result.data["lm_dtype"],
            "model_name": metadata.model,
            "k_values": list(config["k_values"]),
            "lower_vram_usage": False,
        },
        "eval_id": str(uuid.uuid5(_NAMESPACE, fingerprint(result.model_dump(mode="json")))),
        "datetime_epoch_millis": int(time.time() * 1000) if epoch_millis is None else epoch_millis,
        "eval_result_metrics": {
            "llm": {name: value for name, value in overall.items() if name.startswith("llm_")},
            "sae": {name: value for name, value in overall.items() if name.startswith("sae_")},
        },
        "eval_result_details": [
            {
                "dataset_name": f"{_name(one, result.pooling)}_results",
                **_accuracies(one, "lm"),
                **_accuracies(one, "sae"),
            }
            for one in result.datasets
        ],
        "sae_bench_commit_hash": f"Unknown (not run by SAEBench but by scansion {version('scansion')})",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": result.sae,
        "sae_lens_version": "Unknown (not used)",
        "sae_cfg_dict": _sae_config(subject),
        "eval_result_unstructured": {
            "scansion": result.model_dump(mode="json", exclude={"datasets"}),
            **{f"{_name(one, result.pooling)}_results": _by_task(one.tasks) for one in result.datasets},
        },
    }


def _name(dataset: DatasetResult, pooling: str) -> str:
    if dataset.stand_in:
        name = f"sae_probes/{dataset.stand_in} (stand-in for {dataset.name})"
    elif dataset.name.startswith(ORDER_PREFIX):
        name = f"scansion/{dataset.name}"
    else:
        name = dataset.name if dataset.name in HUB_SETS else f"sae_probes/{dataset.name}"
    return name if pooling == "mean" else f"{name} [{pooling}]"


def _accuracies(scores: SparseProbingResult | DatasetResult | TaskResult, source: str) -> dict[str, float | None]:
    prefix = {"lm": "llm", "sae": "sae"}[source]
    top: Mapping[int, Estimate | float | None] = getattr(scores, f"{source}_top_k")
    return {
        f"{prefix}_test_accuracy": _value(getattr(scores, f"{source}_test_accuracy")),
        **{f"{prefix}_top_{k}_test_accuracy": _value(top.get(k)) for k in _K_FIELDS},
    }


def _value(accuracy: Estimate | float | None) -> float | None:
    return accuracy.value if isinstance(accuracy, Estimate) else accuracy


def _by_task(tasks: list[TaskResult]) -> dict[str, dict[str, float | None]]:
    """Metric -> task -> accuracy."""
    scores = {task.name: {**_accuracies(task, "lm"), **_accuracies(task, "sae")} for task in tasks}
    return {metric: {name: one[metric] for name, one in scores.items()} for metric in scores[tasks[0].name]}


def _sae_config(subject: Subject) -> dict[str, Any]:
    """The SAE in the words of SAELens' configuration."""
    sae, metadata = subject.sae, subject.metadata
    hook_point = HookPoint.parse(metadata.hook_point)
    return {
        "model_name": metadata.model,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "hook_layer": hook_point.layer,
        "hook_name": hook_point.transformer_lens_name,
        "context_size": metadata.context_length,
        "hook_head_index": None,
        "architecture": sae.config.architecture,
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": None,
        "activation_fn_str": sae.config.architecture,
        "prepend_bos": True,
        "normalize_activations": "none",
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "",
        "dataset_path": "",
        "dataset_trust_remote_code": False,
        "seqpos_slice": [None],
        "training_tokens": metadata.tokens,
        "sae_lens_training_version": None,
        "neuronpedia_id": None,
    }
