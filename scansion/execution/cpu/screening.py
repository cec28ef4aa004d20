"""Screening: a product in bfloat16 rules out nearly all features of a token; the others are computed in full.

A processor that multiplies in bfloat16 does so about twice as fast as in float32. With ``x = a + r`` and ``W = w + s``,
rounded and lost, ``x W - a w = r W + a s``, which is no larger than the norms of these allow (Cauchy and Schwarz). So what is
found is what float32 would have found, and its values are dot products in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scansion.execution import backends
from scansion.execution.blocks import Block
from scansion.execution.cpu import native, native_screen
from scansion.execution.encoder import Encoder
from scansion.execution.operations import Found

# The sums of squares behind the norms are themselves rounded.
CARE = 1.001


def screened_top_k(encoder: Encoder, k: int, at_once: int) -> list[Found] | None:
    """The k largest positive entries of each token, or all where a token has fewer, some tokens at a time.

    Args:
        encoder: of all blocks.
        k: entries that a token keeps.
        at_once: entries of the product to be held at once.

    Returns:
        None where float32 is faster: the processor does not multiply in bfloat16, there are few tokens or features, or
        rounding leaves too much open; or where something is NaN, or too large for screening.
    """
    found: list[Found] = []
    for screen in _screens(encoder, k, at_once):
        some, n_full = native_screen.screened_top_k(screen, k)
        if some is None or n_full > backends.SCREENING_SHARE * screen.n_entries:
            return None
        found.append(some)
    return found or None


def screened_above(encoder: Encoder, floor: float, k: int, at_once: int) -> list[Found] | None:
    """All entries above ``floor``, likewise; ``k`` is how many a token is expected to have."""
    found: list[Found] = []
    for screen in _screens(encoder, k, at_once):
        some = native_screen.screened_above(screen, floor, int(backends.SCREENING_SHARE * screen.n_entries))
        if some is None:
            return None
        found.append(some)
    return found or None


def _screens(encoder: Encoder, k: int, at_once: int) -> Iterator[native_screen.Screen]:
    """Some tokens at a time, each only until the next; none where it would not pay."""
    if not may_pay(encoder, k):
        return
    W, norms, errors = native_screen.round_rows(encoder.W_enc)
    # A sum of n products in float32 is off by n / 2^24 of the factors' norms, at most, here as in what is computed in full.
    errors += 2 * (W.shape[1] + 16) * 2.0**-24 * norms
    of_features = encoder.b_enc, CARE * norms, CARE * errors
    n = encoder.per_position
    buffer = W.new_empty(max(at_once, *(n * block.width for block in encoder.blocks)))
    few = True
    for block in encoder.blocks:
        b, W_norms, W_errors = (torch.cat([each[piece] for piece in block.pieces]) for each in of_features)
        for part in _parts(block, n, at_once, few):
            x = encoder.tokens_of(part).contiguous()
            rounded, norms, errors = native_screen.round_rows(x)
            products = buffer[: len(x) * part.width].view(len(x), -1)
            encoder.multiply(part, rounded, W, products)
            W_enc, names = encoder.W_enc, part.features
            yield native_screen.Screen(products, x, norms, errors, W_enc, b, W_norms, W_errors, names)
        few = False


def may_pay(encoder: Encoder, k: int) -> bool:
    """Whether screening can be faster than float32 here, as far as sizes tell, for tokens that keep ``k`` features."""
    return (
        encoder.n_tokens >= backends.SCREENING_TOKENS
        and all(block.width >= backends.SCREENING_WIDTH * k for block in encoder.blocks)
        and encoder.x.shape[-1] >= backends.SCREENING_D_IN
        and encoder.x.dtype == torch.float32
        and native.supports(encoder.W_enc)
        and native_screen.has_bfloat16()
    )


def _parts(block: Block, n: int, at_once: int, few: bool) -> Iterator[Block]:
    """Its positions, as many at a time as may be held, or one; if ``few``, those of a few tokens come first."""
    step = max(1, at_once // (n * block.width))
    start, stop = block.rows.start, block.rows.stop
    if few:
        first = min(stop, start + min(step, max(1, backends.SCREENING_FEW // n)))
        if first > start:
            yield block.at(slice(start, first))
        start = first
    yield from block.at(slice(start, stop)).split(step)
