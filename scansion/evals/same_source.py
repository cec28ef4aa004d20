"""An SAE is evaluated on its own model and hook point, and on activations of the model as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE
from scansion.lm import LanguageModel


def require_same_source(subjects: Sequence[LoadedSAE], store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless every SAE was trained on the store's model, revision and hook point."""
    identity = store.identity
    for subject in subjects:
        trained = subject.metadata
        if not trained.model_id.same_as(identity.model_id) or trained.hook_point != identity.hook_point:
            raise EvalError(
                f"{subject.name} was trained on {trained.model_id} {trained.hook_point}, "
                f"but the store holds {identity.model_id} {identity.hook_point}; "
                "evaluate an SAE on its own model and hook point"
            )


def require_same_model(lm: LanguageModel, store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless ``lm`` is what the store was made with."""
    if not lm.facts.id.same_as(store.identity.model_id):
        raise EvalError(
            f"{lm.facts.name} is now at {lm.facts.revision}, but the store was made with "
            f"{store.identity.model_revision}; harvest again, or bring that model back"
        )


def data_from(store: ActivationStore, config: BaseModel) -> dict[str, Any]:
    """What a result says of its data: the store it was read from, and the settings."""
    return {
        "store": store.manifest.key,
        "contexts": store.identity.contexts,
        "split": store.identity.split,
        "config": config.model_dump(mode="json"),
    }
