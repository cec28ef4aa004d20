"""The machine's own limits, measured in the run they are compared with, and the least work that a training step is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.rounds import Action

SQUARE = 2048
COPIED = 1 << 26  # numbers: 256 MB, far beyond any cache
ADAM_BYTES = 28  # a parameter: itself, its gradient and two moments read, all but the gradient written


def limits(d_in: int, d_sae: int, tokens: int, square: int = SQUARE, copied: int = COPIED) -> dict[str, Action]:
    """Plain operations of torch that a step cannot be faster than, by name.

    Args:
        d_in, d_sae, tokens: the shape of the encoder product.
        square: side of the square product.
        copied: numbers copied.
    """
    a, b = torch.randn(square, square), torch.randn(square, square)
    product = torch.empty(square, square)
    x, W, pre_acts = torch.randn(tokens, d_in), torch.randn(d_sae, d_in), torch.empty(tokens, d_sae)
    source, target = torch.zeros(copied), torch.zeros(copied)
    weights = nn.Parameter(torch.zeros(2, d_sae, d_in))
    weights.grad = torch.ones_like(weights)
    adam = torch.optim.Adam([weights], fused=True)
    return {
        "square product": lambda _: torch.mm(a, b, out=product),
        "encoder product": lambda _: torch.mm(x, W.T, out=pre_acts),
        "copy": lambda _: target.copy_(source),
        "adam": lambda _: adam.step(),
    }


def limits_work(d_in: int, d_sae: int, tokens: int, square: int = SQUARE, copied: int = COPIED) -> dict[str, Any]:
    """Operations or bytes of each of :func:`limits`."""
    return {
        "square product": {"flop": 2 * square**3},
        "encoder product": {"flop": 2 * tokens * d_in * d_sae},
        "copy": {"bytes": 8 * copied},
        "adam": {"bytes": ADAM_BYTES * 2 * d_in * d_sae},
    }


def useful_flop(kind: str, d_in: int, d_sae: int, k: int, bands: int = 1) -> float:
    """Floating-point operations that training on one token takes at least.

    With TopK and BatchTopK: the encoder product, and four products over k active entries (decoder, gradients of the
    activations, of W_dec and of W_enc). With ReLU as it starts, half of all entries are active, and all five products
    are whole. G bands divide what is over all features by G. A random mask divides nothing.
    """
    if kind == "relu":
        return 10 * d_in * d_sae / bands
    return 2 * d_in * d_sae / bands + 8 * k * d_in


def step_work(kind: str, d_in: int, d_sae: int, k: int, tokens: int, bands: int = 1) -> dict[str, float]:
    """The least work of a step: operations, Adam's traffic, and what selection would move were it not in the cache.

    Returns:
        ``flop``; ``adam_bytes``; ``selection_bytes``, pre-activations written once and read once.
    """
    return {
        "flop": tokens * useful_flop(kind, d_in, d_sae, k, bands),
        "adam_bytes": ADAM_BYTES * 2 * d_in * d_sae,
        "selection_bytes": 0.0 if kind == "relu" else 8 * tokens * d_sae / bands,
    }
