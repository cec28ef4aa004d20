"""The frame that every result file of SAEBench 0.6 puts around its figures."""

from __future__ import annotations

import time
import uuid
from importlib.metadata import version
from typing import Any

from scansion.errors import ModelError
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.statistics import Estimate
from scansion.files import fingerprint
from scansion.lm import HookPoint

_NAMESPACE = uuid.UUID("6f0f9f0e-5a3c-4f55-9b0f-5d2f7f0c8e11")


def in_frame(
    result: EvalResult,
    subject: LoadedSAE,
    eval_type_id: str,
    eval_config: dict[str, Any],
    metrics: dict[str, dict[str, Any]],
    details: list[dict[str, Any]],
    unstructured: dict[str, Any] | None = None,
    *,
    ours: dict[str, Any] | None = None,
    epoch_millis: int | None = None,
) -> dict[str, Any]:
    """A result file in SAEBench's layout.

    Args:
        result: the result to write; its contents give the file's id.
        subject: the SAE.
        eval_type_id, eval_config, metrics, details, unstructured: SAEBench's fields of the same names.
        ours: everything SAEBench has no field for (status, reasons, notes, intervals), written to the unstructured part
            under ``scansion``; default the whole result.
        epoch_millis: the time to write in the file; default now.
    """
    return {
        "eval_type_id": eval_type_id,
        "eval_config": eval_config,
        "eval_id": str(uuid.uuid5(_NAMESPACE, fingerprint(result.model_dump(mode="json")))),
        "datetime_epoch_millis": int(time.time() * 1000) if epoch_millis is None else epoch_millis,
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": f"Unknown (not run by SAEBench but by scansion {version('scansion')})",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": result.sae,
        "sae_lens_version": "Unknown (not used)",
        "sae_cfg_dict": _sae_config(subject),
        "eval_result_unstructured": {
            "scansion": result.model_dump(mode="json") if ours is None else ours,
            **(unstructured or {}),
        },
    }


def value_of(estimate: Estimate | None) -> float | None:
    """The figure without its interval; None stays None."""
    return estimate.value if estimate else None


def _sae_config(subject: LoadedSAE) -> dict[str, Any]:
    """The SAE in the terms of SAELens' configuration."""
    sae, metadata = subject.sae, subject.metadata
    try:
        hook_point = HookPoint.parse(metadata.hook_point)
        layer, name = hook_point.layer, hook_point.transformer_lens_name
    except ModelError:  # planted activations belong to no layer
        layer, name = 0, metadata.hook_point
    return {
        "model_name": metadata.model,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "hook_layer": layer,
        "hook_name": name,
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
