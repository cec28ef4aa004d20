"""Sparse probing results in SAEBench's own layout, so that its plots and scripts read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scansion.evals.base import LoadedSAE, in_frame
from scansion.evals.probing.hub_sets import HUB_SETS
from scansion.evals.probing.order_sets import ORDER_PREFIX
from scansion.evals.probing.result import DatasetResult, SparseProbingResult, TaskResult
from scansion.evals.statistics import Estimate

# SAEBench's layout has a field for each of these, null if that k was not probed, and no field for any other k.
_K_FIELDS = (1, 2, 5, 10, 20, 50, 100)


def sparse_probing_json(
    result: SparseProbingResult, subject: LoadedSAE, epoch_millis: int | None = None
) -> dict[str, Any]:
    """``result`` as SAEBench 0.6 would have written it.

    Data sets of the asset are named ``sae_probes/...``, even if they stand in for one that SAEBench uses, because their
    texts are others; where texts were not pooled by their mean, as SAEBench pools them, the name ends in the pooling.
    reasons, pooling, controls and intervals, for which it has no place, are under
    ``eval_result_unstructured["scansion"]``, next to the accuracies of single tasks, which SAEBench keeps there too.

    Args:
        result: of ``subject``.
        subject: the SAE.
        epoch_millis: the time to write in it; default now.
    """
    config = result.data["config"]
    overall = {**_accuracies(result, "lm"), **_accuracies(result, "sae")}
    return in_frame(
        result,
        subject,
        "sparse_probing",
        {
            "random_seed": config["seed"],
            "dataset_names": [_name(one, result.pooling) for one in result.datasets],
            "probe_train_set_size": config["train_size"],
            "probe_test_set_size": config["test_size"],
            "context_length": config["context_length"],
            # The SAE reads the LM's batches.
            "sae_batch_size": config["lm_batch_size"],
            "llm_batch_size": config["lm_batch_size"],
            "llm_dtype": result.data["lm_dtype"],
            "model_name": subject.metadata.model,
            "k_values": list(config["k_values"]),
            "lower_vram_usage": False,
        },
        {
            "llm": {name: value for name, value in overall.items() if name.startswith("llm_")},
            "sae": {name: value for name, value in overall.items() if name.startswith("sae_")},
        },
        [
            {
                "dataset_name": f"{_name(one, result.pooling)}_results",
                **_accuracies(one, "lm"),
                **_accuracies(one, "sae"),
            }
            for one in result.datasets
        ],
        {f"{_name(one, result.pooling)}_results": _by_task(one.tasks) for one in result.datasets},
        ours=result.model_dump(mode="json", exclude={"datasets", "by_text"}),
        epoch_millis=epoch_millis,
    )


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
