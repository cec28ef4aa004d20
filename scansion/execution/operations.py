"""What a training step is made of, each operation done by the fastest implementation that can work on its tensors.

What each computes is said here; who else can do it is said in :mod:`scansion.execution.backends`. The private functions
are torch's versions, which work everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scansion.execution.backends import CACHED, choose
from scansion.execution.cpu.top_k import cells_above, largest_positive

# torch announces its sparse matrices as new each time that a process first makes one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

# Features and values of some tokens' entries, token by token, and how many each token has.
Found: TypeAlias = tuple[Int[Tensor, "_"], Float[Tensor, "_"], Int[Tensor, "_"]]
# Names of columns, each list for the rows up to a number (exclusive); None for the columns themselves.
Names: TypeAlias = Sequence[tuple[int, Int[Tensor, "w"] | None]]


def top_k(x: Float[Tensor, "t w"], k: int, names: Names | None = None) -> Found:
    """The k largest positive entries of each row, or all where a row has fewer; some zeros may be among them.

    Args:
        x: the rows.
        k: entries that a row keeps.
        names: of columns; None for the columns themselves.
    """
    names = names or [(len(x), None)]
    # The C part returns None where there is a NaN, which torch counts as the largest of all: whoever reads it sees it.
    return choose("top_k", _top_k, x)(x, min(k, x.shape[1]), names) or _top_k(x, k, names)


def _top_k(x: Tensor, k: int, names: Names) -> Found:
    columns, values, counts = largest_positive(x, k)
    tokens = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(columns))
    return _named(columns, tokens, names), values, counts


def above(x: Float[Tensor, "t w"], floor: float, names: Names, at_most: int | None = None) -> Found | int:
    """All entries above ``floor``, as :func:`top_k` returns them; perhaps only how many, if more than ``at_most``."""
    return choose("above", _above, x)(x, floor, names, at_most)


def _above(x: Tensor, floor: float, names: Names, at_most: int | None) -> Found:
    cells, width = cells_above(x, floor), x.shape[1]
    counts = torch.bincount(cells // width, minlength=len(x))
    return _named(cells % width, cells // width, names), x.view(-1)[cells], counts


def _named(columns: Tensor, rows: Tensor, names: Names) -> Int[Tensor, "nnz"]:
    """The names of these columns, in these rows."""
    named = [each for _, each in names if each is not None]
    if not named:
        return columns
    if len(named) == 1:
        return named[0][columns]
    ends = torch.tensor([end for end, _ in names], device=rows.device)
    return torch.stack(named)[torch.searchsorted(ends, rows, right=True), columns]


def group(
    features: Int[Tensor, "nnz"], offsets: Int[Tensor, "T_plus_1"], values: Float[Tensor, "nnz"], d_sae: int
) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]]:
    """The order that groups entries by feature, their tokens in it, and where each feature's begin and end.

    Args:
        features, values: of the entries, token by token.
        offsets: token t has entries offsets[t] to offsets[t + 1] (exclusive).
        d_sae: number of features.
    """
    return choose("group", _group, values)(features, offsets, d_sae)


def _group(features: Tensor, offsets: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    order = features.int().argsort(stable=True)  # half the time of 64 bits
    ends = count(features, d_sae).cumsum(0)
    return order, tokens_of(offsets, len(features))[order], torch.cat([ends.new_zeros(1), ends])


def tokens_of(offsets: Int[Tensor, "T_plus_1"], nnz: int) -> Int[Tensor, "nnz"]:
    """The token of each entry."""
    counts = offsets.diff()
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=nnz)


def fired(features: Int[Tensor, "nnz"], values: Float[Tensor, "nnz"], d_sae: int) -> Int[Tensor, "d_sae"]:
    """How many entries of each feature are above 0."""
    return choose("fired", _fired, values)(features, values, d_sae)


def _fired(features: Tensor, values: Tensor, d_sae: int) -> Tensor:
    return count(features, d_sae, values > 0)


def decode(
    x: Float[Tensor, "T d_in"],
    offsets: Int[Tensor, "T_plus_1"],
    features: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "T d_in"]:
    """``x - acts @ W_dec`` from the active entries."""
    return choose("decode", _decode, x, W_dec)(x, offsets, features, values, W_dec)


def _decode(x: Tensor, offsets: Tensor, features: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    residual = sum_of_rows(features, W_dec, offsets, values)
    return torch.sub(x, residual, out=residual)


def sum_of_rows(
    rows: Int[Tensor, "nnz"],
    table: Float[Tensor, "n_rows d"],
    offsets: Int[Tensor, "n_plus_1"],
    weights: Float[Tensor, "nnz"],
) -> Float[Tensor, "n d"]:
    """For each segment of entries the weighted sum of the table's rows that they name; 0 where a segment is empty.

    Args:
        rows: of the table, one per entry.
        table: what is added up.
        offsets: segment i has entries offsets[i] to offsets[i + 1] (exclusive); from 0 to nnz.
        weights: of each entry.
    """
    return choose("sum_of_rows", _sum_of_rows, table)(rows, table, offsets, weights)


def _sum_of_rows(rows: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def dots_at_entries(
    gradient: Float[Tensor, "T d"],
    W_dec: Float[Tensor, "d_sae d"],
    offsets: Int[Tensor, "T_plus_1"],
    tokens: Int[Tensor, "nnz"],
    features: Int[Tensor, "nnz"],
) -> Float[Tensor, "nnz"]:
    """``gradient @ W_dec.T`` at the active entries alone.

    Args:
        gradient: one row per token.
        W_dec: one row per feature.
        offsets: token t has entries offsets[t] to offsets[t + 1] (exclusive).
        tokens, features: of each entry.
    """
    return choose("dots_at_entries", _dots_at_entries, W_dec)(gradient, W_dec, offsets, tokens, features)


def _dots_at_entries(gradient: Tensor, W_dec: Tensor, offsets: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
    size, zeros = (len(gradient), len(W_dec)), gradient.new_zeros(len(features))
    pattern = torch.sparse_csr_tensor(offsets, features, zeros, size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, gradient, W_dec.T).values()


def weighted_sum(weights: Float[Tensor, "n"], rows: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """``weights @ rows``."""
    return choose("weighted_sum", torch.matmul, rows)(weights, rows)


def normalise(rows: Float[Tensor, "n d"]) -> None:
    """Put rows on the unit sphere, in place; a row of zeros stays as it is."""
    choose("normalise", _normalise, rows)(rows)


def _normalise(rows: Tensor) -> None:
    for some in rows.split(_rows_at_once(rows)):
        some /= torch.linalg.vector_norm(some, dim=1, keepdim=True).clamp_min(torch.finfo(some.dtype).tiny)


def remove_parallel(rows: Float[Tensor, "n d"], gradient: Float[Tensor, "n d"]) -> None:
    """Take from each row of a gradient its part along a row of unit norm, in place."""
    choose("remove_parallel", _remove_parallel, rows, gradient)(rows, gradient)


def _remove_parallel(rows: Tensor, gradient: Tensor) -> None:
    size = _rows_at_once(rows)
    for some, along in zip(gradient.split(size), rows.split(size), strict=True):
        some.addcmul_(along, (some * along).sum(dim=1, keepdim=True), value=-1)


def _rows_at_once(rows: Tensor) -> int:
    """Rows that the CPU's cache holds, so that they come from memory once; elsewhere, all."""
    return max(1, CACHED // rows.shape[1]) if rows.device.type == "cpu" else len(rows)


def count(places: Int[Tensor, "nnz"], n: int, counted: Bool[Tensor, "nnz"] | None = None) -> Int[Tensor, "n"]:
    """How often each place, from 0 to n - 1, is named; by the entries ``counted``, or all."""
    if places.device.type == "cpu":
        return torch.bincount(places if counted is None else places[counted], minlength=n)
    return _count_without_waiting(places, n, counted)


def _count_without_waiting(places: Tensor, n: int, counted: Tensor | None) -> Tensor:
    """Sizes come from shapes; bincount, and the choice of some entries, would ask the device for them."""
    ones = torch.ones_like(places) if counted is None else counted.to(places.dtype)
    return places.new_zeros(n).index_add_(0, places, ones)
