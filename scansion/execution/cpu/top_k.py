"""The k largest entries of each row on a CPU, for machines without the C part, which does the same.

Maxima of groups of entries give a lower bound on the k-th largest entry, and only entries that reach the bound are compared.
``torch.topk`` is slower: it moves an index along with every entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

# Groups per row and wanted entry. About 1.15 k entries reach the k-th largest of 4 k group maxima.
GROUPS = 4
# Rows per thread: with fewer, starting another thread takes longer than it saves.
ROWS = 64
_LEAST = np.nextafter(np.float32(0), np.float32(1))
_T = TypeVar("_T")


def largest_positive(
    x: Float[Tensor, "t w"], k: int
) -> tuple[Int[Tensor, "nnz"], Float[Tensor, "nnz"], Int[Tensor, "t"]]:
    """The k largest positive entries of each row, or all positive ones if a row has fewer.

    Returns:
        Columns and values row by row, and the number of entries per row. torch's version pads rows with zeros.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return _by_torch(x, k)
    parts = _by_rows(lambda rows: _largest(rows, k), x.numpy())
    complete = [part for part in parts if part is not None]
    if len(complete) < len(parts):
        return _by_torch(x, k)  # counts a NaN as the largest entry, so that it reaches the loss and is seen
    columns, values, counts = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*complete, strict=True))
    return columns, values, counts


def cells_above(x: Float[Tensor, "t w"], floor: float) -> Int[Tensor, "nnz"]:
    """Indices in the flattened matrix, ascending, of all entries above ``floor``."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return (x.view(-1) > floor).nonzero().squeeze(1)
    parts = _by_rows(lambda rows: (np.flatnonzero(rows > np.float32(floor)), rows.size), x.numpy())
    starts = np.cumsum([0] + [size for _, size in parts[:-1]])
    return torch.from_numpy(np.concatenate([cells + start for (cells, _), start in zip(parts, starts, strict=True)]))


def _by_torch(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    values, columns = x.topk(min(k, x.shape[1]), dim=1, sorted=False)
    counts = columns.new_full((len(x),), columns.shape[1])
    return columns.flatten(), values.relu().flatten(), counts


def _largest(x: Float32[np.ndarray, "t w"], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Columns, values and counts of the largest entries of these rows; None if there is a NaN."""
    n_rows, width = x.shape
    largest = _large_ones(x, min(k, width))
    if np.isnan(largest).any():
        return None
    cells = np.flatnonzero(x >= np.maximum(largest.min(axis=1, keepdims=True), _LEAST))
    rows, values = cells // width, x.reshape(-1)[cells]
    counts = np.bincount(rows, minlength=n_rows)
    widest = int(counts.max())
    if widest > k:
        first = np.cumsum(counts) - counts
        table = np.full((n_rows, widest), -np.inf, np.float32)
        table[rows, np.arange(len(cells)) - first[rows]] = values
        last_in = np.partition(table, widest - k, axis=1)[:, widest - k]
        kept = values >= last_in[rows]
        cells, values, rows = cells[kept], values[kept], rows[kept]
        counts = np.bincount(rows, minlength=n_rows)
        if counts.max() > k:
            kept = _without_ties(values, rows, counts, last_in, k)
            cells, values, counts = cells[kept], values[kept], np.minimum(counts, k)
    return cells % width, values, counts


def _large_ones(x: Float32[np.ndarray, "t w"], k: int) -> Float32[np.ndarray, "t k"]:
    """For each row k of its entries: their least is a lower bound on the row's k-th largest entry. NaN if the row has one."""
    n_groups = GROUPS * k
    if x.shape[1] >= 2 * n_groups:
        maxima = x[:, :n_groups].copy()
        for start in range(n_groups, x.shape[1], n_groups):
            part = x[:, start : start + n_groups]
            seen = maxima[:, : part.shape[1]]
            np.maximum(seen, part, out=seen)
        x = maxima
    return np.partition(x, x.shape[1] - k, axis=1)[:, x.shape[1] - k :]  # NaN counts as the largest


def _without_ties(values: np.ndarray, rows: np.ndarray, counts: np.ndarray, last_in: np.ndarray, k: int) -> np.ndarray:
    """True for the entries to keep: of entries that tie for a row's last place, the first ones."""
    kept = np.ones(len(values), bool)
    for row in np.flatnonzero(counts > k):
        tied = np.flatnonzero((rows == row) & (values == last_in[row]))
        kept[tied[len(tied) - (counts[row] - k) :]] = False
    return kept


def _by_rows(work: Callable[[np.ndarray], _T], x: np.ndarray) -> list[_T]:
    """Apply ``work`` to parts of the rows of x, one per thread that torch uses."""
    n_threads = min(torch.get_num_threads(), max(1, len(x) // ROWS))
    if n_threads == 1:
        return [work(x)]
    return list(_pool(n_threads, os.getpid()).map(work, np.array_split(x, n_threads)))


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """A pool of threads. One per process: a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="top-k")
