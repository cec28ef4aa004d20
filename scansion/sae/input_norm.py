"""A normalisation of each token before the SAE reads it, undone after decoding; some SAEs of other libraries have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
"""SAELens' names. ``layer_norm`` is also what OpenAI's TopK SAEs have: mean 0 and standard deviation 1 over d_in, with no
weights. ``constant_norm_rescale``: norm sqrt(d_in)."""

_EPSILON = 1e-5  # theirs


@dataclass(frozen=True, eq=False)
class NormalisedInput:
    """Tokens as the SAE reads them, and what turns its output into activations again: ``output * scale + mean``.

    Attributes:
        x: normalised activations.
        scale: what the SAE's output is multiplied by, [*batch, 1]; a scalar if it is the same for all tokens.
        mean: what is then added; likewise.
    """

    x: Float[Tensor, "*batch d_in"]
    scale: Float[Tensor, "..."]
    mean: Float[Tensor, "..."]


def normalise(x: Float[Tensor, "*batch d_in"], norm: InputNorm) -> NormalisedInput:
    """Normalise each token; ``none`` returns ``x`` itself."""
    one, zero = x.new_ones(()), x.new_zeros(())
    if norm == "none":
        return NormalisedInput(x, one, zero)
    if norm == "constant_norm_rescale":
        # A token of zeros, as padding is in some models, stays 0.
        factor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        return NormalisedInput(x * factor, 1 / factor, zero)
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    scale = centred.std(dim=-1, keepdim=True)
    return NormalisedInput(centred / (scale + _EPSILON), scale, mean)
