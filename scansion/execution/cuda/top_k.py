"""The k largest entries of each row, exactly, in one kernel.

Floats of one sign are in the order of their bits, so selection compares whole numbers ("keys"): 15 bits of a bfloat16, 31 of
a float32. A key of 0 stands for every entry that is not positive.

1. A row is read as ``GROUPS`` interleaved groups, of which only the largest keys are kept. If k groups have a largest key
   of at least ``bound``, then so have k entries: the k-th largest entry is at least ``bound``.
2. The entries at or above that bound, a few more than k, are the candidates.
3. The k-th largest candidate is found by bisection, in registers.

If a row has more candidates than there is room for, such as a row of equal entries, step 3 reads the row instead: slower, and
just as exact. The host never waits: each row has exactly k entries, of which those in excess of the positive ones are 0.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.cuda.launch import launch, power_of_two

# Groups of a row. A program reads this many entries at a time: 4 warps with 16 bytes per thread.
GROUPS = 1024
# A row has at least this many groups for each entry kept, so that few entries share a group and the bound is close.
GROUPS_PER_ENTRY = 4
# The bound may leave up to this many times k groups: the last steps of its bisection would hardly remove candidates.
SLACK = 1.25


def supports(width: int, k: int) -> bool:
    """True if rows of this width are wide enough for the bound to be of use."""
    return min(width, GROUPS) >= GROUPS_PER_ENTRY * k


def largest_per_row(x: Float[Tensor, "t w"], k: int) -> tuple[Int[Tensor, "t k"], Float[Tensor, "t k"]]:
    """Columns, ascending, and values of the k largest positive entries of each row.

    A row with fewer positive entries is filled up with entries of value 0 in column 0. Of entries that tie for the last place,
    those in the first columns are kept. A NaN counts as larger than any number.

    Args:
        x: float32 or bfloat16; the columns of a row must be contiguous.
        k: entries that a row keeps; :func:`supports` must allow it.
    """
    n_rows, width = x.shape
    columns = torch.empty(n_rows, k, dtype=torch.int64, device=x.device)
    values = x.new_empty(n_rows, k)
    if n_rows == 0:
        return columns, values
    groups = min(GROUPS, power_of_two(width))
    padded_k = power_of_two(k)
    room = 4 * padded_k
    candidates = torch.empty(2, n_rows, room, dtype=torch.int32, device=x.device)
    launch(
        _largest,
        (n_rows,),
        x,
        candidates,
        columns,
        values,
        n_rows,
        width,
        x.stride(0),
        K=k,
        PADDED_K=padded_k,
        AT_MOST=max(k, int(SLACK * k)),
        ROOM=room,
        GROUPS=groups,
        HALF=x.dtype == torch.bfloat16,
        warps=max(1, min(4, groups // 256)),
    )
    return columns, values


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _largest(
    x,
    candidates,
    columns,
    values,
    n_rows,
    width,
    stride,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    AT_MOST: tl.constexpr,
    ROOM: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
):
    """A program for each row."""
    row = tl.program_id(0).to(tl.int64)
    start = x + row * stride
    largest = tl.zeros([GROUPS], tl.int32)
    for first in range(0, width, GROUPS):
        largest = tl.maximum(largest, _keys(start, first, width, GROUPS, HALF))
    bound = _kth_largest(largest, K, AT_MOST)

    positions = candidates + row * ROOM
    keys = candidates + (n_rows + row) * ROOM
    n_candidates = 0
    for first in range(0, width, GROUPS):
        key = _keys(start, first, width, GROUPS, HALF)
        kept = (key >= bound).to(tl.int32)
        before = n_candidates + tl.cumsum(kept, 0) - kept
        fits = (kept > 0) & (before < ROOM)
        tl.store(positions + before, first + tl.arange(0, GROUPS), mask=fits)
        tl.store(keys + before, key, mask=fits)
        n_candidates += tl.sum(kept, axis=0)
    tl.debug_barrier()  # candidates are read by other threads than wrote them

    slot = row * K
    if n_candidates <= ROOM:
        place = tl.arange(0, ROOM)
        there = place < n_candidates
        key = tl.load(keys + place, mask=there, other=0)
        column = tl.load(positions + place, mask=there, other=0)
        last = _kth_largest(key, K, K)
        n_written, _ = _write(
            key, column, last, K - tl.sum((key > last).to(tl.int32), axis=0), slot, columns, values, HALF
        )
    else:
        last = _kth_largest_of_row(start, bound, width, K, GROUPS, HALF)
        n_above = 0
        for first in range(0, width, GROUPS):
            n_above += tl.sum((_keys(start, first, width, GROUPS, HALF) > last).to(tl.int32), axis=0)
        ties = K - n_above
        n_written = 0
        for first in range(0, width, GROUPS):
            key = _keys(start, first, width, GROUPS, HALF)
            column = first + tl.arange(0, GROUPS)
            written, tied = _write(key, column, last, ties, slot + n_written, columns, values, HALF)
            n_written += written
            ties -= tied
    filler = tl.arange(0, PADDED_K)
    empty = (filler >= n_written) & (filler < K)
    tl.store(columns + slot + filler, filler * 0, mask=empty)
    tl.store(values + slot + filler, (filler * 0).to(values.dtype.element_ty), mask=empty)


@triton.jit
@no_type_check
def _keys(start, first, width, GROUPS: tl.constexpr, HALF: tl.constexpr):
    """Keys of some entries of a row: their bits, or 0 where they are not positive."""
    column = first + tl.arange(0, GROUPS)
    entry = tl.load(start + column, mask=column < width, other=0.0)
    bits = entry.to(tl.int16, bitcast=True).to(tl.int32) if HALF else entry.to(tl.int32, bitcast=True)
    return tl.maximum(bits, 0)


@triton.jit
@no_type_check
def _kth_largest(key, K: tl.constexpr, AT_MOST: tl.constexpr):
    """The largest number that at least K keys reach, or 1; a smaller one, if no more than AT_MOST keys reach it."""
    low = 1
    high = tl.maximum(tl.max(key, axis=0), 1) + 1
    reach = tl.sum((key >= low).to(tl.int32), axis=0)
    while (high - low > 1) & (reach > AT_MOST):
        middle = low + (high - low) // 2
        count = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = count >= K
        low = tl.where(enough, middle, low)
        reach = tl.where(enough, count, reach)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
@no_type_check
def _kth_largest_of_row(start, bound, width, K: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr):
    """The largest number, ``bound`` or above, that at least K keys of the row reach; reads the row at each bisection."""
    low = bound
    high = bound
    for first in range(0, width, GROUPS):
        high = tl.maximum(high, tl.max(_keys(start, first, width, GROUPS, HALF), axis=0))
    high += 1
    while high - low > 1:
        middle = low + (high - low) // 2
        count = 0
        for first in range(0, width, GROUPS):
            count += tl.sum((_keys(start, first, width, GROUPS, HALF) >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= K, middle, low)
        high = tl.where(count >= K, high, middle)
    return low


@triton.jit
@no_type_check
def _write(key, column, last, ties, slot, columns, values, HALF: tl.constexpr):
    """Write the entries above ``last``, and the first so many that equal it; returns how many in all, and equal ones."""
    above = (key > last).to(tl.int32)
    equal = ((key == last) & (last > 0)).to(tl.int32)
    equal = equal * (tl.cumsum(equal, 0) <= ties).to(tl.int32)
    kept = above + equal
    place = slot + tl.cumsum(kept, 0) - kept
    value = key.to(tl.int16).to(tl.bfloat16, bitcast=True) if HALF else key.to(tl.float32, bitcast=True)
    tl.store(columns + place, column.to(tl.int64), mask=kept > 0)
    tl.store(values + place, value, mask=kept > 0)
    return tl.sum(kept, axis=0), tl.sum(equal, axis=0)
