"""What every evaluation shares: the SAE it is given, the result it returns, why an SAE is degenerate, SAEBench's frame."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from scansion.activations import ActivationStore
from scansion.errors import ModelError
from scansion.evals.statistics import Estimate, TextGroups
from scansion.files import fingerprint
from scansion.lm import HookPoint
from scansion.sae import SAE, SAEMetadata, sae_fingerprint

Status = Literal["ok", "degenerate", "inapplicable"]
SCHEMA_VERSION = 1
Result = TypeVar("Result", bound="EvalResult")

# Of the ids of result files in SAEBench's layout.
_NAMESPACE = uuid.UUID("6f0f9f0e-5a3c-4f55-9b0f-5d2f7f0c8e11")
# Probes within this distance of 0.5 are at chance; the language model's must be twice as far from it to say anything.
_CHANCE_MARGIN = 0.02


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE to evaluate: its name in tables, the module (it takes unscaled activations), and where it comes from.

    Example:
        >>> loaded = scansion.LoadedSAE("topk", *scansion.load_sae("runs/topk"))
    """

    name: str
    sae: SAE
    metadata: SAEMetadata

    def __repr__(self) -> str:
        """Its name and the SAE's sizes."""
        return f"LoadedSAE({self.name!r}, {self.sae!r})"

    @cached_property
    def fingerprint(self) -> str:
        """A 32-digit hash of the settings, provenance and weights: equal only for the same SAE."""
        return sae_fingerprint(self.sae, self.metadata)


class EvalResult(BaseModel):
    """Base of every evaluation's result.

    Attributes:
        eval: the evaluation's name.
        sae: the SAE's name.
        status: ``degenerate`` if the SAE has learnt nothing that could be measured; ``inapplicable`` if the model, the
            data or the SAE lacks what the evaluation measures. No conclusion may be drawn from either.
        reasons: why the status is not ``ok``, in plain words; empty if it is.
        notes: what to know before reading the figures, in full sentences: which data are stand-ins, known criticism of
            the method.
        sae_fingerprint: identifies the SAE that was measured, see :attr:`LoadedSAE.fingerprint`.
        sae_metadata: where the SAE comes from.
        data: where the evaluation's data comes from, and the settings used.
        seed: of every random choice made in the evaluation.
        by_text: figures, by the names of comparisons, by groups of documents or test texts, which are the same groups for
            every SAE measured with these data and settings.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    eval: str
    sae: str
    status: Status
    reasons: list[str]
    notes: list[str] = []
    sae_fingerprint: str
    sae_metadata: SAEMetadata
    data: dict[str, Any]
    seed: int
    by_text: dict[str, TextGroups] = Field(default_factory=dict[str, TextGroups], exclude_if=lambda groups: not groups)

    @classmethod
    def of(
        cls: type[Result],
        subject: LoadedSAE,
        data: Mapping[str, Any],
        seed: int,
        reasons: Sequence[str] = (),
        inapplicable: Sequence[str] = (),
        **figures: Any,
    ) -> Result:
        """A result for an SAE; status and provenance are filled in.

        Args:
            subject: what was measured.
            data, seed: see :class:`EvalResult`.
            reasons: why the SAE is degenerate; empty if it is not.
            inapplicable: if it is not, why the evaluation says nothing about it; empty if it does.
            figures: the fields that the result's class adds, and ``notes``.
        """
        return cls(
            sae=subject.name,
            status="degenerate" if reasons else "inapplicable" if inapplicable else "ok",
            reasons=list(reasons or inapplicable),
            sae_fingerprint=subject.fingerprint,
            sae_metadata=subject.metadata,
            data=dict(data),
            seed=seed,
            **figures,
        )


def data_from(store: ActivationStore, config: BaseModel) -> dict[str, Any]:
    """The ``data`` of a result that was measured on a store: the store, its text, and the settings."""
    return {
        "store": store.manifest.key,
        "contexts": store.identity.contexts,
        "split": store.identity.split,
        "config": config.model_dump(mode="json"),
    }


def reasons_before_running(subject: LoadedSAE) -> list[str]:
    """Why the SAE is degenerate, as far as its provenance and weights show: no training step, weights not finite."""
    reasons: list[str] = []
    if subject.metadata.steps == 0:
        reasons.append("no training step was taken")
    broken = [name for name, tensor in subject.sae.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        reasons.append(f"weights are not finite: {', '.join(broken)}")
    return reasons


def reasons_from_activity(n_alive: int, output_variance: float, input_variance: float) -> list[str]:
    """Why the SAE is degenerate, from held-out activations: the activations or the output are constant, or
    no feature fires, or the output is not finite.

    Args:
        n_alive: features that fired at least once.
        output_variance, input_variance: per token, summed over dimensions.
    """
    reasons: list[str] = []
    if not input_variance > 0:
        reasons.append("the activations do not vary: their variance is 0 in float32")
    if n_alive == 0:
        reasons.append("all features are dead: none fired on held-out text")
    if not torch.isfinite(torch.tensor(output_variance)):
        reasons.append("the output is not finite")
    elif output_variance <= 1e-6 * input_variance:
        reasons.append("the output is constant: it does not depend on the input")
    return reasons


def reasons_from_probes(sae_accuracies: list[float], lm_accuracies: list[float]) -> list[str]:
    """Why the SAE is degenerate, from balanced probes: all of its own are at chance (0.5), the LM's are not.

    Args:
        sae_accuracies: of probes on the SAE's features, in [0, 1].
        lm_accuracies: of probes on the LM's activations for the same tasks.
    """
    informative = [sae for sae, lm in zip(sae_accuracies, lm_accuracies, strict=True) if lm > 0.5 + 2 * _CHANCE_MARGIN]
    if informative and max(informative) <= 0.5 + _CHANCE_MARGIN:
        return [f"every probe is at chance (best {max(informative):.3f}) while the language model's are not"]
    return []


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
        "eval_id": str(uuid.uuid5(_NAMESPACE, fingerprint(result.model_dump(mode="json", exclude={"by_text"})))),
        "datetime_epoch_millis": int(time.time() * 1000) if epoch_millis is None else epoch_millis,
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": f"Unknown (not run by SAEBench but by scansion {version('scansion')})",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": result.sae,
        "sae_lens_version": "Unknown (not used)",
        "sae_cfg_dict": _sae_config(subject),
        "eval_result_unstructured": {
            "scansion": result.model_dump(mode="json", exclude={"by_text"}) if ours is None else ours,
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
