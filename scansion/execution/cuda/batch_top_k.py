"""The n largest entries of a whole batch, exactly: what BatchTopK keeps. The host never waits.

Selection compares whole numbers ("keys", as in `top_k.py`), and finds the largest one that at least n entries reach:

1. One pass counts how many entries have each of 256 consecutive keys, and how many have larger ones. It begins around the
   smallest value that recent steps kept. In bfloat16 these keys are two octaves, so this pass nearly always finds the place.
2. In float32, the 256 counts are of ranges of keys, and each further pass divides the range that holds the place by 256.
3. If the place is outside the first 256 ranges, the search begins again with ranges that cover all keys.

The host launches as many passes as the worst case takes. Those that are not needed end at once: the state of the search is on
the device. So where a search begins changes its time, never its result.

Then the entries of each row are counted, and written to their places. More than n are kept where several tie for the last
place, as by a comparison with the smallest value kept; there is room for n / ``SPARE`` of them. In bfloat16 a few percent of
the entries may tie, and keeping only the first would favour the first positions of a context. If so many tie that they do
not fit, the first do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.cuda.launch import ceil_div, launch
from scansion.execution.cuda.top_k import _keys, _write
from scansion.execution.entries import Names, RowEntries

# Entries that a program reads at a time to count them: 4 warps with 16 bytes of bfloat16 per thread, twice; and to write some.
BLOCK = 2048
WRITE_BLOCK = 1024
# Programs that count keys, at most: a few for each multiprocessor, and few enough that one program adds up their counts.
PROGRAMS = 512
# Ranges that keys are counted in; and 2^8 of them.
BINS = 256
BINS_BITS = 8
# One entry of room, for ties, per so many that are kept.
SPARE = 8


def largest_of_all(
    parts: Sequence[tuple[Float[Tensor, "_ _"], Names]], n: int, last_place: Float[Tensor, ""]
) -> RowEntries:
    """The n largest positive entries of several matrices together, or all positive ones if there are fewer.

    Behind them, up to the end of the tensors, are entries of value 0, of feature 0 in the last row.

    Args:
        parts: the matrices, float32 or bfloat16, each of one row or more and with the features of its columns;
            fewer than 2^31 entries in all.
        n: entries to keep.
        last_place: a guess at the smallest value kept, 0 or below for none.
    """
    matrices = [x.contiguous() for x, _ in parts]
    first = matrices[0]
    n_rows, device, half = sum(map(len, matrices)), first.device, first.dtype == torch.bfloat16
    capacity = n + max(1, n // SPARE)
    features = torch.zeros(capacity, dtype=torch.int64, device=device)
    values = first.new_zeros(capacity)
    place = _place_of(matrices, n, last_place)

    above, equal = torch.empty(2, n_rows, dtype=torch.int64, device=device)
    ends = list(accumulate(map(len, matrices)))
    rows_of = [slice(end - len(x), end) for x, end in zip(matrices, ends, strict=True)]
    for x, rows in zip(matrices, rows_of, strict=True):
        launch(_count_kept, (len(x),), x, above[rows], equal[rows], place, x.shape[1], HALF=half, BLOCK=BLOCK)
    ties = torch.minimum(equal, (capacity - above.sum() - equal.cumsum(0) + equal).clamp_min(0))
    counts = above + ties
    starts = counts.cumsum(0) - counts
    for x, rows, (_, names) in zip(matrices, rows_of, parts, strict=True):
        tables = [each for _, each in names if each is not None]
        table = torch.stack(tables) if tables else features
        launch(
            _write_kept, (len(x),), x, features, values, starts[rows], ties[rows], place,
            table, _index_of_rows(tuple(end for end, _ in names), device), x.shape[1],
            NAMED=bool(tables), HALF=half, BLOCK=WRITE_BLOCK,
        )  # fmt: skip
    counts[-1:] = capacity - starts[-1:]
    return features, values.float(), counts


def _place_of(matrices: Sequence[Tensor], n: int, last_place: Tensor) -> Int[Tensor, "2"]:
    """First the largest key that at least n entries reach, or 1 if fewer are positive."""
    device, half = matrices[0].device, matrices[0].dtype == torch.bfloat16
    state = torch.empty(2, dtype=torch.int32, device=device)
    programs = [max(1, min(PROGRAMS, ceil_div(x.numel(), BLOCK))) for x in matrices]
    counts = torch.empty(sum(programs), BINS, dtype=torch.int32, device=device)
    above = torch.empty(sum(programs), dtype=torch.int32, device=device)
    launch(_begin, (1,), last_place.to(matrices[0].dtype), state, HALF=half, BINS=BINS, warps=1)
    # Ranges of 1 key, then of 2^7 and of 1; in float32 of 2^16, 2^8 and 1 key, or of 2^16, then of 2^23, 2^15, 2^7 and 1.
    for _ in range(3 if half else 5):
        row = 0
        for x, part in zip(matrices, programs, strict=True):
            size = ceil_div(ceil_div(x.numel(), part), BLOCK) * BLOCK
            launch(
                _count_keys, (part,), x, counts[row:], above[row:], state, x.numel(), size,
                HALF=half, BLOCK=BLOCK, BINS=BINS,
            )  # fmt: skip
            row += part
        launch(
            _narrow, (1,), counts, above, state, n, len(above), HALF=half, ROWS=16, BINS=BINS, BITS=BINS_BITS, warps=8
        )
    return state


@lru_cache(maxsize=64)
def _index_of_rows(ends: tuple[int, ...], device: torch.device) -> Int[Tensor, "t"]:
    """For each row, the index of the first of these ends above it; cached because they are the same at every step."""
    sizes = torch.tensor(ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    with torch.inference_mode(False):
        return torch.arange(len(ends)).repeat_interleave(sizes).to(device)


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _begin(last_place, state, HALF: tl.constexpr, BINS: tl.constexpr):
    """Write the first key and the width, as a power of two, of the first ranges: an octave on each side of the last place."""
    key = tl.max(_keys(last_place, 0, 1, 1, HALF), axis=0)
    shift = 0 if HALF else 16
    low = tl.maximum(key - (BINS // 2 << shift), 1)
    # Key 0 as the first one marks the ranges that cover all keys.
    tl.store(state, tl.where(key > 0, low, 0))
    tl.store(state + 1, tl.where(key > 0, shift, 7 if HALF else 23))


@triton.jit
@no_type_check
def _count_keys(x, counts, above, state, n_entries, size, HALF: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """For ``size`` entries per program, how many have a key in each range, and how many one above all ranges."""
    program = tl.program_id(0).to(tl.int64)
    low, shift = tl.load(state), tl.load(state + 1)
    if shift >= 0:
        count = tl.zeros([BINS], tl.int32)
        n_above = 0
        stop = tl.minimum((program + 1) * size, n_entries)
        for first in range(program * size, stop, BLOCK):
            key = _keys(x, first, stop, BLOCK, HALF)
            there = (key >= low) & (key > 0)
            place = tl.where(there, key - low, 0) >> shift
            inside = there & (place < BINS)
            count += tl.histogram(tl.where(inside, place, 0), BINS)
            # Every other entry was counted in the first range.
            n_inside = tl.sum(inside.to(tl.int32), axis=0)
            count -= tl.where(tl.arange(0, BINS) == 0, BLOCK - n_inside, 0)
            n_above += tl.sum(there.to(tl.int32), axis=0) - n_inside
        tl.store(counts + program * BINS + tl.arange(0, BINS), count)
        tl.store(above + program, n_above)


@triton.jit
@no_type_check
def _narrow(
    counts,
    above,
    state,
    n,
    n_programs,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Divide the range that holds the n-th largest key, or begin again with ranges that cover all keys. One program."""
    low, shift = tl.load(state), tl.load(state + 1)
    if shift >= 0:
        bins = tl.arange(0, BINS)
        total = tl.zeros([BINS], tl.int32)
        n_above = 0
        for first in range(0, n_programs, ROWS):
            row = first + tl.arange(0, ROWS)
            there = row < n_programs
            total += tl.sum(tl.load(counts + row[:, None] * BINS + bins[None, :], mask=there[:, None], other=0), axis=0)
            n_above += tl.sum(tl.load(above + row, mask=there, other=0), axis=0)
        reach = n_above + tl.sum(total, axis=0) - tl.cumsum(total, 0) + total
        n_enough = tl.sum((reach >= n).to(tl.int32), axis=0)
        found = (n_above < n) & (n_enough > 0)
        few = (low == 0) & (n_enough == 0)
        narrower = tl.where(shift == 0, -1, tl.maximum(shift - BITS, 0))
        # If fewer than n entries are positive, all of them are kept.
        low = tl.where(found, low + (tl.maximum(n_enough - 1, 0) << shift), tl.where(few, 1, 0))
        shift = tl.where(found, narrower, tl.where(few, -1, 7 if HALF else 23))
        tl.debug_barrier()  # all threads have read the state
        tl.store(state, low)
        tl.store(state + 1, shift)


@triton.jit
@no_type_check
def _count_kept(x, above, equal, state, width, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """For each row, how many keys are above the last place, and how many equal it."""
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(state)
    n_above = 0
    n_equal = 0
    for first in range(0, width, BLOCK):
        key = _keys(x + row * width, first, width, BLOCK, HALF)
        n_above += tl.sum((key > last).to(tl.int32), axis=0)
        n_equal += tl.sum((key == last).to(tl.int32), axis=0)
    tl.store(above + row, n_above.to(tl.int64))
    tl.store(equal + row, n_equal.to(tl.int64))


@triton.jit
@no_type_check
def _write_kept(
    x,
    features,
    values,
    starts,
    ties,
    state,
    table,
    index_of_row,
    width,
    NAMED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For each row, write the entries above the last place, and its first ``ties`` that equal it."""
    row = tl.program_id(0).to(tl.int64)
    last, place, left = tl.load(state), tl.load(starts + row), tl.load(ties + row).to(tl.int32)
    names = table + tl.load(index_of_row + row) * width
    for first in range(0, width, BLOCK):
        key = _keys(x + row * width, first, width, BLOCK, HALF)
        column = first + tl.arange(0, BLOCK)
        name = column
        if NAMED:
            name = tl.load(names + column, mask=(column < width) & (key >= last), other=0)
        written, tied = _write(key, name, last, left, place, features, values, HALF)
        place += written
        left -= tied
