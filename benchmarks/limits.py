"""The machine's own limits, measured in the run they are compared with, and the least work that a training step is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Action

SQUARE = 2048
COPIED = 1 << 26  # numbers: 256 MB, far beyond any cache
ADAM_BYTES = 28  # a parameter: itself, its gradient and two moments read, all but the gradient written


def wait_for(device: torch.device) -> None:
    """Return once a GPU has done everything that it was given; at once for the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits(
    d_in: int,
    d_sae: int,
    tokens: int,
    square: int = SQUARE,
    copied: int = COPIED,
    device: torch.device | None = None,
) -> dict[str, Action]:
    """Plain operations of torch that a step cannot be faster than, by name. On a GPU, products are of bfloat16 numbers.

    Args:
        d_in, d_sae, tokens: the shape of the encoder product.
        square: side of the square product.
        copied: numbers copied.
        device: where; default the CPU.
    """
    device = device or torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape).to(device, dtype)

    def finished(operation: Callable[[], object]) -> Action:
        def act(_: int) -> None:
            operation()
            wait_for(device)

        return act

    a, b, product = numbers(square, square), numbers(square, square), numbers(square, square)
    x, W, pre_acts = numbers(tokens, d_in), numbers(d_sae, d_in), numbers(tokens, d_sae)
    source, target = torch.zeros(copied, device=device), torch.zeros(copied, device=device)
    weights = nn.Parameter(torch.zeros(2, d_sae, d_in, device=device))
    weights.grad = torch.ones_like(weights)
    adam = torch.optim.Adam([weights], fused=True)
    return {
        "square product": finished(lambda: torch.mm(a, b, out=product)),
        "encoder product": finished(lambda: torch.mm(x, W.T, out=pre_acts)),
        "copy": finished(lambda: target.copy_(source)),
        "adam": finished(adam.step),
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
