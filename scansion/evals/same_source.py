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
    there = (identity.model, identity.model_revision, identity.hook_point)
    for subject in subjects:
        trained = (subject.metadata.model, subject.metadata.model_revision, subject.metadata.hook_point)
        if trained != there:
            raise EvalError(
                f"{subject.name} was trained on {' '.join(trained)}, but the store holds {' '.join(there)}; "
                "evaluate an SAE on its own model and hook point"
            )


def require_same_model(lm: LanguageModel, store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless ``lm`` is what the store was made with."""
    if lm.facts.revision != store.identity.model_revision:
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
