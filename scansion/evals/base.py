"""What every evaluation shares: the SAE it is given, the result it returns, and the checks that come before any figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import xxhash
from pydantic import BaseModel, ConfigDict

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.lm import HookPoint, LanguageModel, ModelId
from scansion.sae import SAE, SAEMetadata

Status = Literal["ok", "degenerate", "inapplicable"]
SCHEMA_VERSION = 1

# Runs that differ in one of these answer different questions.
MUST_AGREE = ("model", "model_revision", "hook_point", "contexts", "context_length", "use_position_0", "tokens")
# Probes within this distance of 0.5 are at chance; the language model's must be twice as far from it to say anything.
_CHANCE_MARGIN = 0.02


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE to evaluate: its name in tables, the module (it takes unscaled activations), and where it comes from."""

    name: str
    sae: SAE
    metadata: SAEMetadata

    @cached_property
    def fingerprint(self) -> str:
        """A 32-digit hash of the settings, provenance and weights: equal only for the same SAE."""
        digest = xxhash.xxh3_128()
        digest.update((self.sae.config.model_dump_json() + self.metadata.model_dump_json()).encode())
        for name, tensor in self.sae.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


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


def status_of(reasons: list[str]) -> Status:
    """``degenerate`` if there is any reason, else ``ok``."""
    return "degenerate" if reasons else "ok"


def data_from(store: ActivationStore, config: BaseModel) -> dict[str, Any]:
    """The ``data`` of a result that was measured on a store: the store, its text, and the settings."""
    return {
        "store": store.manifest.key,
        "contexts": store.identity.contexts,
        "split": store.identity.split,
        "config": config.model_dump(mode="json"),
    }


def not_comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What makes the figures of two runs answer different questions; empty if the runs may be compared.

    Args:
        ours, theirs: of each run, the values of :data:`MUST_AGREE`, and under ``evaluated_on`` the data that each
            evaluation was measured on, by the evaluation's name. An evaluation that only one of the runs has does not
            count: its figures are missing from the other, not different.
    """
    here, there = (ModelId(str(one.get("model")), str(one.get("model_revision"))) for one in (ours, theirs))
    same_model = here.same_as(there)
    problems = [
        f"{name} is {ours.get(name)!r}, not {theirs.get(name)!r}"
        for name in MUST_AGREE
        if ours.get(name) != theirs.get(name) and not (same_model and name in ("model", "model_revision"))
    ]
    measured, other = ours.get("evaluated_on", {}), theirs.get("evaluated_on", {})
    different = [name for name in sorted(measured.keys() & other.keys()) if measured[name] != other[name]]
    if different:
        problems.append(f"{', '.join(different)} was measured on other data or with other settings")
    return problems


def require_same_source(subjects: Sequence[LoadedSAE], store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless every SAE was trained on the store's model, revision and hook point."""
    identity = store.identity
    for subject in subjects:
        _require_trained_on(subject, identity.model_id, identity.hook_point, "the store holds")


def require_same_model(lm: LanguageModel, store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless the store was made with ``lm``."""
    if not lm.facts.id.same_as(store.identity.model_id):
        raise EvalError(
            f"{lm.facts.name} is now at {lm.facts.revision}, but the store was made with "
            f"{store.identity.model_revision}; harvest again, or bring that model back"
        )


def require_sae_matches_lm(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, context_length: int
) -> None:
    """Raise unless the LM reads contexts of this length and every SAE was trained on it, at this hook point.

    Raises:
        ModelError: the model has no such layer, or cannot read contexts of this length.
        EvalError: an SAE was trained on another model or hook point.
        ShapeError: an SAE does not fit the model's width or the context length.
    """
    lm.facts.check_context_length(context_length)
    hook_point.check(lm.facts.n_layers, lm.facts.name)
    for subject in subjects:
        _require_trained_on(subject, lm.facts.id, str(hook_point), "the texts are read by")
        weights = subject.sae.W_enc
        # Encoding one token at the last position runs every check of width and mask that the texts will meet.
        last = torch.tensor([context_length - 1], device=weights.device)
        with torch.no_grad():
            subject.sae.encode(weights.new_zeros(1, hook_point.width(lm.facts)), last)


def _require_trained_on(subject: LoadedSAE, model: ModelId, hook_point: str, what: str) -> None:
    trained = subject.metadata
    if not trained.model_id.same_as(model) or trained.hook_point != hook_point:
        raise EvalError(
            f"{subject.name} was trained on {trained.model_id} {trained.hook_point}, but {what} {model} {hook_point}; "
            "evaluate an SAE on its own model and hook point"
        )


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
    """Why the SAE is degenerate, from held-out activations: no feature fires, or the output is constant or not finite.

    Args:
        n_alive: features that fired at least once.
        output_variance, input_variance: per token, summed over dimensions.
    """
    reasons: list[str] = []
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
