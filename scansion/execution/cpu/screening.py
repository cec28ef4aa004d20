"""Screening: a product in 16 bits rules out nearly all features of a token; the others are computed in full.

Processors multiply in bfloat16, or in int16 with a scale per row, about twice as fast as in float32. Write ``x = a + r`` and
``W = w + s``, each the sum of its rounded value and what rounding lost. Then ``x W - a w = r W + a s``, whose size the norms
of these vectors bound (Cauchy and Schwarz): at most ``|r| |W| + |a| |s|``. A feature that is too small even with this bound
added cannot be selected. So the selected entries are those that float32 would select, with dot products in float32 as values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from scansion.execution import backends
from scansion.execution.blocks import Block
from scansion.execution.cpu import native, native_screen
from scansion.execution.encoder import Encoder
from scansion.execution.operations import RowEntries

# The norms are rounded themselves: a bound computed from them is raised by this factor, so that it stays a bound.
CARE = 1.001


def screened_top_k(encoder: Encoder, k: int, at_once: int) -> list[RowEntries] | None:
    """The k largest positive entries of each token, or all positive ones if a token has fewer; a few tokens at a time.

    Args:
        encoder: of all blocks.
        k: entries to keep per token.
        at_once: entries of the product held in memory at a time.

    Returns:
        None if float32 is faster (the processor multiplies no faster in 16 bits, there are few tokens or features, or rounding
        rules out too few features), or if a number is NaN or too large for screening.
    """
    parts: list[RowEntries] = []
    for screen in _screens(encoder, k, at_once):
        part, n_full = native_screen.screened_top_k(screen, k)
        if part is None or n_full > backends.SCREENING_SHARE * screen.n_entries:
            return None
        parts.append(part)
    return parts or None


def screened_above(encoder: Encoder, floor: float, k: int, at_once: int) -> list[RowEntries] | None:
    """All entries above ``floor``, as :func:`screened_top_k` returns them; ``k`` is the expected number per token."""
    parts: list[RowEntries] = []
    for screen in _screens(encoder, k, at_once):
        part = native_screen.screened_above(screen, floor, int(backends.SCREENING_SHARE * screen.n_entries))
        if part is None:
            return None
        parts.append(part)
    return parts or None


def _screens(encoder: Encoder, k: int, at_once: int) -> Iterator[native_screen.Screen]:
    """A few tokens at a time; each is valid until the next is asked for. Nothing if screening would not be faster."""
    if not may_pay(encoder, k):
        return
    chosen = backends.screening()
    assert chosen is not None, "may_pay() checks it"
    _, dtype = chosen
    W = native_screen.round_rows(encoder.W_enc, dtype)
    # A float32 sum of n products is off by at most n / 2^24 times the product of the two norms. Both the bfloat16 product,
    # which is added up in float32, and the full one are off by this much: hence the 2. An int16 product is off by less.
    errors = W.errors + 2 * (encoder.W_enc.shape[1] + 16) * 2.0**-24 * W.norms
    of_features = encoder.b_enc, CARE * W.norms, CARE * errors
    n = encoder.per_position
    size = max(at_once, *(n * block.width for block in encoder.blocks))
    buffer = torch.empty(size, dtype=torch.bfloat16)
    few = True
    for block in encoder.blocks:
        b, W_norms, W_errors = (torch.cat([each[piece] for piece in block.pieces]) for each in of_features)
        for part in _parts(block, n, at_once, few):
            x = encoder.tokens_of(part).contiguous()
            rounded = native_screen.round_rows(x, dtype)
            products = buffer[: len(x) * part.width].view(len(x), -1)
            # The screen multiplies by weights itself: rounded products times weights would be off by more than its bound.
            unweighted = replace(part, weights=None)
            encoder.fill(unweighted, partial(native_screen.multiply, rounded, W), products)
            weights = part.weights if part.closed is None else None
            of_tokens, of_columns = (rounded.norms, rounded.errors), (b, W_norms, W_errors)
            yield native_screen.Screen(products, x, *of_tokens, encoder.W_enc, *of_columns, part.features, weights)
        few = False


def may_pay(encoder: Encoder, k: int) -> bool:
    """Whether screening can be faster than float32, judged by sizes, for tokens that keep ``k`` features."""
    return (
        encoder.n_tokens >= backends.SCREENING_TOKENS
        and all(block.width >= backends.SCREENING_WIDTH * k for block in encoder.blocks)
        and encoder.x.shape[-1] >= backends.SCREENING_D_IN
        and encoder.x.dtype == torch.float32
        and native.supports(encoder.W_enc)
        and all(block.weights is None or bool(block.weights.isfinite().all()) for block in encoder.blocks)
        and backends.screening() is not None
    )


def _parts(block: Block, n: int, at_once: int, few: bool) -> Iterator[Block]:
    """The block in parts of at most ``at_once`` entries, or of one position; if ``few``, the first part has a few tokens."""
    step = max(1, at_once // (n * block.width))
    start, stop = block.rows.start, block.rows.stop
    if few:
        first = min(stop, start + min(step, max(1, backends.SCREENING_FEW // n)))
        if first > start:
            yield block.at(slice(start, first))
        start = first
    yield from block.at(slice(start, stop)).split(step)
