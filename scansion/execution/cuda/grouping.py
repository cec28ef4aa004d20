"""Entries in the order of their features, without a sort: the same order every time, and the host never waits.

Each token that uses a feature sets one bit of that feature's row of bits. Counting the bits before a token's own gives the
place of its entry among the feature's. Setting bits is atomic, but in whatever order they are set, the bits are the same.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.cuda.launch import ceil_div, launch

# Entries, features, and words of 32 tokens that one program reads at a time.
ENTRIES = 256
FEATURES = 64
WORDS = 32


def group(
    features: Int[Tensor, "nnz"], tokens: Int[Tensor, "nnz"], values: Float[Tensor, "nnz"], n_tokens: int, d_sae: int
) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]]:
    """The order that groups entries by feature, their tokens in it, and where each feature's begin and end.

    Entries of value 0 are left out. So the last offset may be less than nnz; order and tokens are 0 from there on.

    Args:
        features, tokens: of each entry. Two entries that are not 0 differ in one of them.
        values: of each entry; only whether it is 0 counts.
        n_tokens: number of tokens.
        d_sae: number of features.
    """
    nnz, n_words, device = len(features), ceil_div(n_tokens, 32), features.device
    order, ordered_tokens = torch.zeros(2, nnz, dtype=torch.int64, device=device)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=device)
    if nnz == 0:
        return order, ordered_tokens, offsets
    bits = torch.zeros(n_words, d_sae, dtype=torch.int32, device=device)
    before = torch.empty_like(bits)
    features, tokens, values = features.contiguous(), tokens.contiguous(), values.contiguous()
    of_entries, of_features = (ceil_div(nnz, ENTRIES),), (ceil_div(d_sae, FEATURES),)
    entries = features, tokens, values, bits
    launch(_set_bits, of_entries, *entries, nnz, d_sae, ENTRIES=ENTRIES)
    launch(_count_bits, of_features, bits, before, offsets, d_sae, n_words, FEATURES=FEATURES, WORDS=WORDS)
    torch.cumsum(offsets, 0, out=offsets)
    launch(_place, of_entries, *entries, before, offsets, order, ordered_tokens, nnz, d_sae, ENTRIES=ENTRIES)
    return order, ordered_tokens, offsets


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _set_bits(features, tokens, values, bits, nnz, d_sae, ENTRIES: tl.constexpr):
    """Set the bit of each entry's token in the words of its feature."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    there = entry < nnz
    counted = there & (tl.load(values + entry, mask=there, other=0.0) != 0.0)
    feature = tl.load(features + entry, mask=there, other=0)
    token = tl.load(tokens + entry, mask=there, other=0)
    bit = tl.full([ENTRIES], 1, tl.int32) << (token % 32).to(tl.int32)
    tl.atomic_or(bits + (token // 32) * d_sae + feature, bit, mask=counted, sem="relaxed")


@triton.jit
@no_type_check
def _count_bits(bits, before, offsets, d_sae, n_words, FEATURES: tl.constexpr, WORDS: tl.constexpr):
    """For each feature the bits set in the words before each word, and how many are set in all (at its offset + 1)."""
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    exists = feature < d_sae
    total = tl.zeros([FEATURES], tl.int32)
    for first in range(0, n_words, WORDS):
        word = first + tl.arange(0, WORDS)
        cell = word[:, None].to(tl.int64) * d_sae + feature[None, :]
        inside = (word < n_words)[:, None] & exists[None, :]
        count = _bits_set(tl.load(bits + cell, mask=inside, other=0))
        tl.store(before + cell, tl.cumsum(count, 0) - count + total[None, :], mask=inside)
        total += tl.sum(count, axis=0)
    tl.store(offsets + 1 + feature, total.to(tl.int64), mask=exists)


@triton.jit
@no_type_check
def _place(features, tokens, values, bits, before, offsets, order, ordered_tokens, nnz, d_sae, ENTRIES: tl.constexpr):
    """Write each entry, and its token, to the entry's place among those of its feature."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there = entry < nnz
    counted = there & (tl.load(values + entry, mask=there, other=0.0) != 0.0)
    feature = tl.load(features + entry, mask=there, other=0)
    token = tl.load(tokens + entry, mask=there, other=0)
    cell = (token // 32) * d_sae + feature
    lower = (tl.full([ENTRIES], 1, tl.int32) << (token % 32).to(tl.int32)) - 1
    in_word = _bits_set(tl.load(bits + cell, mask=counted, other=0) & lower)
    place = tl.load(offsets + feature, mask=counted, other=0) + tl.load(before + cell, mask=counted, other=0) + in_word
    tl.store(order + place, entry, mask=counted)
    tl.store(ordered_tokens + place, token, mask=counted)


@triton.jit
@no_type_check
def _bits_set(word):
    """How many of a word's 32 bits are set: sums of pairs, of fours, of bytes."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)
