"""Screening: a product in bfloat16 rules out nearly all features of a token; the others are computed in full.

A processor that multiplies in bfloat16 does so about twice as fast as in float32. With ``x = a + r`` and ``W = w + s``,
rounded and lost, ``x W - a w = r W + a s``, which is no larger than the norms of these allow (Cauchy and Schwarz). So what is
found is what float32 would have found, and its values are dot products in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.cpu import native, native_screen
from scansion.execution.encoder import Encoder

# Width of the activations, and features that a token may use for each that it keeps, from which on screening pays; from
# selections timed either way.
D_IN = 128
WIDTH = 32
# Tokens from which on it pays to round the encoder for them.
TOKENS = 256
# Share of the entries, at most, that may be computed in full for it to pay.
SHARE = 1 / 8
# Tokens that are tried first.
FEW = 64
# The sums of squares behind the norms are themselves rounded.
CARE = 1.001


# Features and values of some tokens' entries, token by token, and how many each token has.
Found = tuple[Int[Tensor, "_"], Float[Tensor, "_"], Int[Tensor, "_"]]


def screened_top_k(encoders: Sequence[Encoder], k: int, at_once: int) -> list[Found] | None:
    """The k largest positive entries of each token, or all where a token has fewer, some tokens at a time.

    Args:
        encoders: of one SAE.
        k: entries that a token keeps.
        at_once: entries of the product to be held at once.

    Returns:
        None where float32 is faster: the processor does not multiply in bfloat16, there are few tokens or features, or
        rounding leaves too much open; or where something is NaN, or too large for screening.
    """
    found: list[Found] = []
    for screen in _screens(encoders, k, at_once):
        some, n_full = native_screen.screened_top_k(screen, k)
        if some is None or n_full > SHARE * screen.n_entries:
            return None
        found.append(some)
    return found or None


def screened_above(encoders: Sequence[Encoder], floor: float, k: int, at_once: int) -> list[Found] | None:
    """All entries above ``floor``, likewise; ``k`` is how many a token is expected to have."""
    found: list[Found] = []
    for screen in _screens(encoders, k, at_once):
        some = native_screen.screened_above(screen, floor, int(SHARE * screen.n_entries))
        if some is None:
            return None
        found.append(some)
    return found or None


def _screens(encoders: Sequence[Encoder], k: int, at_once: int) -> Iterator[native_screen.Screen]:
    """Some tokens at a time, each only until the next; none where it would not pay."""
    many = sum(encoder.n_tokens for encoder in encoders) >= TOKENS
    if not (many and all(_may_pay(encoder, k) for encoder in encoders)):
        return
    W, norms, errors = native_screen.round_rows(encoders[0].W_enc)
    # A sum of n products in float32 is off by n / 2^24 of the factors' norms, at most, here as in what is computed in full.
    errors += 2 * (W.shape[1] + 16) * 2.0**-24 * norms
    of_features = encoders[0].b_enc, CARE * norms, CARE * errors
    buffer = W.new_empty(max(at_once, *(encoder.x.shape[1] * encoder.width for encoder in encoders)))
    few = True
    for encoder in encoders:
        b, W_norms, W_errors = (torch.cat([each[piece] for piece in encoder.pieces]) for each in of_features)
        for part in _parts(encoder, at_once, few):
            x = part.x.flatten(0, 1).contiguous()
            rounded, norms, errors = native_screen.round_rows(x)
            products = buffer[: len(x) * part.width].view(len(x), -1)
            part.multiply(rounded, W, products)
            yield native_screen.Screen(products, x, norms, errors, part.W_enc, b, W_norms, W_errors, encoder.features)
        few = False


def _may_pay(encoder: Encoder, k: int) -> bool:
    return (
        encoder.width >= WIDTH * k
        and encoder.x.shape[-1] >= D_IN
        and encoder.x.dtype == torch.float32
        and native.supports(encoder.W_enc)
        and native_screen.has_bfloat16()
    )


def _parts(encoder: Encoder, at_once: int, few: bool) -> Iterator[Encoder]:
    """Its positions, as many at a time as may be held, or one; if ``few``, those of a few tokens come first."""
    n_positions, n = encoder.x.shape[:2]
    step = max(1, at_once // (n * encoder.width))
    first = min(step, max(1, FEW // n)) if few else 0
    starts = sorted({0, *range(first, n_positions, step), n_positions})
    return (encoder.at(slice(start, stop)) for start, stop in pairwise(starts))
