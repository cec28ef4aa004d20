"""Triton kernels of sparse execution: weighted sums of rows by segment, and dot products at the active entries alone.

Both functions take the arguments of the same names in :mod:`scansion.execution.operations`, in float32, bfloat16 or float16.
Sums are computed in float32 whatever the type, each by one program in a fixed order, without atomic operations: the same
inputs give the same bytes. Nothing here waits for the device: all sizes come from shapes. Needs Triton, which CUDA builds of
torch bring along; `backends.py` imports this file when it is first needed.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor

from scansion.execution.cuda.launch import ceil_div, launch, power_of_two

# Entries that one program adds up. A longer segment is cut at multiples of this; the sums of its pieces are added afterwards.
# Small, so that the few features that most tokens use do not keep the others waiting.
PIECE = 128
# Rows that a program of weighted sums holds at a time, and columns of each. It adds rows up, so all its warps should share
# the columns of a row (8 per thread, which is 16 bytes of bfloat16): if warps had rows of their own, each sum would cross
# them, and take six times as long.
BLOCK_ROWS = 4
BLOCK_D = 1024
# The same for dot products, which add up columns.
DOT_ROWS = 16
DOT_D = 128


def sum_of_rows(
    rows: Int[Tensor, "nnz"],
    table: Float[Tensor, "n_rows d"],
    offsets: Int[Tensor, "n_plus_1"],
    weights: Float[Tensor, "nnz"],
) -> Float[Tensor, "n d"]:
    """The weighted sum of table rows for each segment of entries, in float32."""
    n, nnz, d = len(offsets) - 1, len(rows), table.shape[1]
    sums = table.new_empty(n, d, dtype=torch.float32)
    if sums.numel() == 0:
        return sums
    table = table if table.stride(1) == 1 else table.contiguous()
    rows, weights, offsets = rows.contiguous(), weights.contiguous(), offsets.contiguous()
    # A long segment may end in a piece in which the next one begins: room for two sums per piece.
    n_pieces = 2 * ceil_div(nnz, PIECE) if nnz > PIECE else 0
    pieces = table.new_empty(n_pieces, d, dtype=torch.float32)
    block_d = min(BLOCK_D, power_of_two(d))
    blocks, warps = ceil_div(d, block_d), max(1, block_d // 256)
    sizes = {"PIECE": PIECE, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_D": block_d, "warps": warps}
    if n_pieces:
        launch(
            _sum_pieces, (n_pieces, blocks), rows, weights, offsets, table, pieces, n, nnz, d, table.stride(0), **sizes
        )
    launch(_sum_segments, (n, blocks), rows, weights, offsets, table, pieces, sums, d, table.stride(0), **sizes)
    return sums


def dots_at_entries(
    gradient: Float[Tensor, "T d"],
    W_dec: Float[Tensor, "d_sae d"],
    offsets: Int[Tensor, "T_plus_1"],
    tokens: Int[Tensor, "nnz"],
    features: Int[Tensor, "nnz"],
) -> Float[Tensor, "nnz"]:
    """For each entry the dot product of its token's row and its feature's row, in float32."""
    nnz, d = len(tokens), gradient.shape[1]
    dots = gradient.new_empty(nnz, dtype=torch.float32)
    if nnz == 0:
        return dots
    left, right = (table if table.stride(1) == 1 else table.contiguous() for table in (gradient, W_dec))
    tokens, features = tokens.contiguous(), features.contiguous()
    inputs = left, tokens, right, features
    launch(
        _dots, (ceil_div(nnz, DOT_ROWS),), *inputs, dots, nnz, d, left.stride(0), right.stride(0),
        BLOCK_ROWS=DOT_ROWS, BLOCK_D=DOT_D,
    )  # fmt: skip
    return dots


def sum_per_feature(
    values: Float[Tensor, "nnz"], order: Int[Tensor, "nnz"], offsets: Int[Tensor, "d_sae_plus_1"]
) -> Float32[Tensor, "d_sae"]:
    """The sum of each feature's values.

    Args:
        values: of the entries.
        order: of the entries, so that those of a feature follow each other.
        offsets: where each feature's begin and end in that order.
    """
    sums = values.new_empty(len(offsets) - 1, dtype=torch.float32)
    launch(_sum_values, (len(sums),), values, order, offsets, sums, BLOCK=PIECE, warps=1)
    return sums


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _sum_segments(
    rows,
    weights,
    offsets,
    table,
    pieces,
    sums,
    d,
    stride,
    PIECE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per segment and block of columns. It adds up the rows of a short segment, or the pieces of a long one."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    start, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    if stop - start <= PIECE:
        total = _weighted_sum(rows, weights, table, stride, start, stop, columns, inside, BLOCK_ROWS, BLOCK_D)
    else:
        parts = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
        last = (stop - 1) // PIECE
        for first in range(start // PIECE, last + 1, BLOCK_ROWS):
            piece = first + tl.arange(0, BLOCK_ROWS)
            place = 2 * piece + (start > piece * PIECE).to(tl.int64)
            wanted = (piece <= last)[:, None] & inside[None, :]
            parts += tl.load(pieces + place[:, None] * d + columns[None, :], mask=wanted, other=0.0)
        total = tl.sum(parts, axis=0)
    tl.store(sums + segment * d + columns, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _sum_pieces(
    rows,
    weights,
    offsets,
    table,
    pieces,
    n,
    nnz,
    d,
    stride,
    PIECE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Two programs per piece and block of columns: one for the segment of its first entry, one for that of its last entry.

    Each works only if its segment is longer than a piece, and the second only if that segment begins in this piece: otherwise
    the first has summed it. Sums that no program writes are never read.
    """
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    begin = place // 2 * PIECE
    end = tl.minimum(begin + PIECE, nnz)
    at_end = place % 2 == 1
    segment = _segment_of(tl.where(at_end, end - 1, begin), offsets, n)
    start, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    if (stop - start > PIECE) & ((start > begin) == at_end):
        start, stop = tl.maximum(start, begin), tl.minimum(stop, end)
        total = _weighted_sum(rows, weights, table, stride, start, stop, columns, inside, BLOCK_ROWS, BLOCK_D)
        tl.store(pieces + place * d + columns, total, mask=inside)


@triton.jit
@no_type_check
def _sum_values(values, order, offsets, sums, BLOCK: tl.constexpr):
    """A program for each feature."""
    feature = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets + feature), tl.load(offsets + feature + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, BLOCK):
        place = first + tl.arange(0, BLOCK)
        there = place < stop
        total += tl.load(values + tl.load(order + place, mask=there, other=0), mask=there, other=0.0).to(tl.float32)
    tl.store(sums + feature, tl.sum(total, axis=0))


@triton.jit
@no_type_check
def _weighted_sum(
    rows, weights, table, stride, start, stop, columns, inside, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Weighted sum of the rows of entries ``start`` to ``stop`` (exclusive), for these columns."""
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for first in range(start, stop, BLOCK_ROWS):
        entry = first + tl.arange(0, BLOCK_ROWS)
        there = entry < stop
        row = tl.load(rows + entry, mask=there, other=0)
        weight = tl.load(weights + entry, mask=there, other=0.0).to(tl.float32)
        values = tl.load(
            table + row[:, None] * stride + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        total += values.to(tl.float32) * weight[:, None]
    return tl.sum(total, axis=0)


@triton.jit
@no_type_check
def _segment_of(entry, offsets, n):
    """The segment that holds an entry: the last segment that begins at or before it. Found by bisection."""
    low = tl.zeros([], tl.int32)
    high = low + n
    while high - low > 1:
        middle = (low + high) // 2
        begun = tl.load(offsets + middle) <= entry
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
    return low


@triton.jit
@no_type_check
def _dots(
    left,
    left_rows,
    right,
    right_rows,
    dots,
    nnz,
    d,
    left_stride,
    right_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per BLOCK_ROWS entries, whichever tokens they belong to, so that all programs have equal work."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = entry < nnz
    left_row = tl.load(left_rows + entry, mask=there, other=0)
    right_row = tl.load(right_rows + entry, mask=there, other=0)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for first in range(0, d, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        both = there[:, None] & (columns < d)[None, :]
        x = tl.load(left + left_row[:, None] * left_stride + columns[None, :], mask=both, other=0.0)
        y = tl.load(right + right_row[:, None] * right_stride + columns[None, :], mask=both, other=0.0)
        total += x.to(tl.float32) * y.to(tl.float32)
    tl.store(dots + entry, tl.sum(total, axis=1).to(dots.dtype.element_ty), mask=there)
