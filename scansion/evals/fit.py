"""The check that an SAE and a language model belong together, made before either is run on anything."""

from __future__ import annotations

import torch

from scansion.errors import EvalError
from scansion.evals.result import Subject
from scansion.lm import HookPoint, LanguageModel


def require_fit(subject: Subject, lm: LanguageModel, hook_point: HookPoint, context_length: int) -> None:
    """Raise unless the SAE was trained on this place of this LM and takes positions up to ``context_length - 1``.

    Raises:
        EvalError: the SAE belongs to another model or hook point.
        ShapeError: it does not fit the model's width or the context length.
    """
    here = (lm.facts.name, lm.facts.revision, str(hook_point))
    trained = (subject.metadata.model, subject.metadata.model_revision, subject.metadata.hook_point)
    if trained != here:
        raise EvalError(
            f"{subject.name} was trained on {' '.join(trained)}, but the texts are read by {' '.join(here)}; "
            "evaluate an SAE on its own model and hook point"
        )
    weights = subject.sae.W_enc
    # A token at the last position meets every check of width and mask that the real ones will.
    last = torch.tensor([context_length - 1], device=weights.device)
    with torch.no_grad():
        subject.sae.encode(weights.new_zeros(1, lm.facts.d_model), last)
