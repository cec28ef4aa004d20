"""The logit lens: the tokens that a direction of the residual stream raises, by the final norm and the unembedding alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scansion.errors import ModelError
from scansion.lm.load import LanguageModel

# Its name in Llama, Gemma and Qwen; in GPT-NeoX; in GPT-2.
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f")


@torch.no_grad()
def unembed(lm: LanguageModel, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """The logits that each direction adds, once normed to the scale of a whole residual stream (float32).

    The norm divides by the length of its input: only the order of the logits and their relative sizes mean something. The
    norm's bias, which does not depend on the direction, is subtracted.

    Raises:
        ModelError: the directions are not of the residual stream's width, or the model has no known final norm or
            unembedding.
    """
    if directions.shape[1] != lm.facts.d_model:
        raise ModelError(
            f"the activations are {directions.shape[1]} wide and the residual stream of {lm.facts.name} is "
            f"{lm.facts.d_model}: a logit lens reads only directions of the residual stream"
        )
    norm, head = _final_norm(lm), lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{lm.facts.name} has no unembedding matrix, so a logit lens cannot be computed")
    x = directions.to(weight)
    normed = norm(x) - norm(torch.zeros_like(x[:1]))
    return (normed @ weight.T).float()


def _final_norm(lm: LanguageModel) -> nn.Module:
    for name in _FINAL_NORMS:
        norm = getattr(lm.model.base_model, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ModelError(
        f"{type(lm.model.base_model).__name__} has no final norm called {' or '.join(_FINAL_NORMS)}, so a logit "
        "lens cannot be computed"
    )
