"""The check that SAEs and a language model belong together, made before any of them is run on anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE
from scansion.lm import HookPoint, LanguageModel


def require_sae_matches_lm(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, context_length: int
) -> None:
    """Raise unless the LM reads contexts this long, and the SAEs were trained on this place of it and take them too.

    Raises:
        ModelError: the model has no such layer, or cannot read contexts this long.
        EvalError: an SAE belongs to another model or hook point.
        ShapeError: an SAE does not fit the model's width or the context length.
    """
    lm.facts.check_context_length(context_length)
    hook_point.check(lm.facts.n_layers, lm.facts.name)
    for subject in subjects:
        _require_sae_fits(subject, lm, hook_point, context_length)


def _require_sae_fits(subject: LoadedSAE, lm: LanguageModel, hook_point: HookPoint, context_length: int) -> None:
    trained = subject.metadata
    if not trained.model_id.same_as(lm.facts.id) or trained.hook_point != str(hook_point):
        raise EvalError(
            f"{subject.name} was trained on {trained.model_id} {trained.hook_point}, "
            f"but the texts are read by {lm.facts.id} {hook_point}; "
            "evaluate an SAE on its own model and hook point"
        )
    weights = subject.sae.W_enc
    # A token at the last position meets every check of width and mask that the real ones will.
    last = torch.tensor([context_length - 1], device=weights.device)
    with torch.no_grad():
        subject.sae.encode(weights.new_zeros(1, lm.facts.d_model), last)
