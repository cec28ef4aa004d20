"""The operations of a sparse training step, each done by the fastest implementation that can work on its tensors.

This file describes what each operation computes, for all implementations: a function of the same name in
:mod:`scansion.execution.cpu.native` or :mod:`scansion.execution.cuda.rows` takes the same arguments. The private functions
are torch's versions, which work everywhere. :mod:`scansion.execution.backends` chooses among them.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scansion.execution.backends import CACHED, choose
from scansion.execution.cpu.top_k import cells_above, largest_positive
from scansion.execution.entries import Names, RowEntries, tokens_of

# torch warns that its sparse matrices are new when a process first makes one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def top_k(x: Float[Tensor, "t w"], k: int, names: Names | None = None) -> RowEntries:
    """The k largest positive entries of each row, or all positive ones if a row has fewer; zeros may be among them.

    Args:
        x: the rows.
        k: entries to keep per row.
        names: the features of the columns; None if column i is feature i.
    """
    names = names or [(len(x), None)]
    # The C part returns None if there is a NaN. torch counts NaN as the largest value, so that it reaches the loss and is seen.
    return choose("top_k", _top_k, x)(x, min(k, x.shape[1]), names) or _top_k(x, k, names)


def _top_k(x: Tensor, k: int, names: Names) -> RowEntries:
    columns, values, counts = largest_positive(x, k)
    tokens = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(columns))
    return _named(columns, tokens, names), values, counts


def above(x: Float[Tensor, "t w"], floor: float, names: Names, at_most: int | None = None) -> RowEntries | int:
    """All entries above ``floor``, as :func:`top_k` returns them; or only their number if they are more than ``at_most``."""
    return choose("above", _above, x)(x, floor, names, at_most)


def _above(x: Tensor, floor: float, names: Names, at_most: int | None) -> RowEntries:
    cells, width = cells_above(x, floor), x.shape[1]
    counts = torch.bincount(cells // width, minlength=len(x))
    return _named(cells % width, cells // width, names), x.view(-1)[cells], counts


def _named(columns: Tensor, rows: Tensor, names: Names) -> Int[Tensor, "nnz"]:
    """The features that these columns stand for in these rows."""
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
    """Group entries by feature, token order kept: the order of the entries, their tokens, and the offsets of each feature.

    Entries of value 0, which no sum needs, may be left out: then offsets end before nnz, and order and tokens are 0 from there.

    Args:
        features, values: of the entries, token by token.
        offsets: token t has entries offsets[t] to offsets[t + 1] (exclusive).
        d_sae: number of features.
    """
    return choose("group", _group, values)(features, offsets, values, d_sae)


def _group(features: Tensor, offsets: Tensor, values: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    order = features.int().argsort(stable=True)  # 32 bits take half the time of 64
    ends = count(features, d_sae).cumsum(0)
    return order, tokens_of(offsets, len(features))[order], torch.cat([ends.new_zeros(1), ends])


def sum_per_feature(
    values: Float[Tensor, "nnz"], order: Int[Tensor, "nnz"], offsets: Int[Tensor, "d_sae_plus_1"]
) -> Float[Tensor, "d_sae"]:
    """The sum of each feature's values, given what :func:`group` returns."""
    return choose("sum_per_feature", _sum_per_feature, values)(values, order, offsets)


def _sum_per_feature(values: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    return sum_into(tokens_of(offsets, len(order)), values[order], len(offsets) - 1)


def sum_per_position(
    values: Float[Tensor, "nnz"],
    entries: tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]],
    per_position: int,
    n_positions: int,
) -> Float[Tensor, "P d_sae"]:
    """The sum of the values of each feature at each position.

    Args:
        values: of the entries.
        entries: their order by feature, as :func:`group` returns it.
        per_position: tokens at each position; tokens are grouped by position.
        n_positions: number of positions.
    """
    return choose("sum_per_position", _sum_per_position, values)(values, entries, per_position, n_positions)


def _sum_per_position(
    values: Tensor, entries: tuple[Tensor, Tensor, Tensor], per_position: int, n_positions: int
) -> Tensor:
    order, tokens, offsets = entries
    cells = tokens_of(offsets, len(order)) * n_positions + tokens // per_position
    return sum_into(cells, values[order], (len(offsets) - 1) * n_positions).view(-1, n_positions).T


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
    """The weighted sum of table rows for each segment of entries; 0 for an empty segment.

    Args:
        rows: the table row of each entry.
        table: the rows to be added up.
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
    for part in rows.split(_rows_at_once(rows)):
        part /= torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny)


def remove_parallel(rows: Float[Tensor, "n d"], gradient: Float[Tensor, "n d"]) -> None:
    """Subtract from each gradient row its component along the same row of ``rows`` (of unit norm), in place."""
    choose("remove_parallel", _remove_parallel, rows, gradient)(rows, gradient)


def _remove_parallel(rows: Tensor, gradient: Tensor) -> None:
    size = _rows_at_once(rows)
    for part, along in zip(gradient.split(size), rows.split(size), strict=True):
        part.addcmul_(along, (part * along).sum(dim=1, keepdim=True), value=-1)


def _rows_at_once(rows: Tensor) -> int:
    """Rows that fit the CPU's cache, so that each is read from memory only once; on other devices all rows."""
    return max(1, CACHED // rows.shape[1]) if rows.device.type == "cpu" else len(rows)


def sum_into(places: Int[Tensor, "nnz"], values: Float[Tensor, "nnz *rest"], n: int) -> Float[Tensor, "n *rest"]:
    """The sum of the values of each place, from 0 to n - 1; the same bytes every time."""
    sums = values.new_zeros(n, *values.shape[1:])
    if places.device.type == "cpu":
        return sums.index_add_(0, places, values)
    return sums.index_put_((places,), values, accumulate=True)  # sorts: index_add_ on a GPU adds in no fixed order


def count(places: Int[Tensor, "nnz"], n: int, counted: Bool[Tensor, "nnz"] | None = None) -> Int[Tensor, "n"]:
    """How often each index from 0 to n - 1 is in ``places``; if ``counted`` is given, only where it is True."""
    if places.device.type == "cpu":
        return torch.bincount(places if counted is None else places[counted], minlength=n)
    return _count_without_waiting(places, n, counted)


def _count_without_waiting(places: Tensor, n: int, counted: Tensor | None) -> Tensor:
    """:func:`count` without waiting for the device: bincount and boolean indexing would, to learn the size of their result."""
    ones = torch.ones_like(places) if counted is None else counted.to(places.dtype)
    return places.new_zeros(n).index_add_(0, places, ones)
