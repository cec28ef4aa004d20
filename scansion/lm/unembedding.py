"""From a direction of the residual stream to the tokens it speaks for: the final norm and the unembedding, and no layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scansion.errors import ModelError
from scansion.lm.load import LanguageModel

# What Llama, Gemma, Qwen; GPT-NeoX; and GPT-2 call it.
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f")


@torch.no_grad()
def unembed(lm: LanguageModel, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """The logits that each direction adds, once normed to the scale of a whole residual stream (float32).

    The norm divides by the length of what it is given, so that only the order of the logits and their size relative to
    one another mean something. The norm's own bias, which says nothing of the direction, is taken off again.

    Raises:
        ModelError: the model has no final norm or no unembedding that we know.
    """
    norm, head = _final_norm(lm), lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{lm.facts.name} has no unembedding matrix, so that no logit lens can be had of it")
    x = directions.to(weight)
    normed = norm(x) - norm(torch.zeros_like(x[:1]))
    return (normed @ weight.T).float()


def _final_norm(lm: LanguageModel) -> nn.Module:
    for name in _FINAL_NORMS:
        found = getattr(lm.model.base_model, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(
        f"{type(lm.model.base_model).__name__} has no final norm called {' or '.join(_FINAL_NORMS)}, so that no logit "
        "lens can be had of it"
    )
