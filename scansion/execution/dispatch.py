"""What the sparse step is made of, each done by Triton on CUDA and by torch's own operations elsewhere.

The choice is made here and nowhere else, and asks nothing of the user. Where Triton could be used and cannot, one line
on stderr says so and why, and torch's operations do the work.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scansion.progress import say

# torch announces its sparse matrices as new each time that a process first makes one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

# The kernels add up in float32, which would cost a float64 table its precision.
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def sum_of_rows(
    rows: Int[Tensor, "nnz"],
    table: Float[Tensor, "n_rows d"],
    offsets: Int[Tensor, "n_plus_1"],
    weights: Float[Tensor, "nnz"],
) -> Float[Tensor, "n d"]:
    """For each segment of entries the weighted sum of the table's rows that they name; 0 where a segment is empty.

    Args:
        rows: of the table, one an entry.
        table: what is added up.
        offsets: segment i has entries offsets[i] to offsets[i + 1] (exclusive); from 0 to nnz.
        weights: of each entry.
    """
    kernels = _kernels_for(table.device, table.dtype)
    if kernels is None:
        return embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    return kernels.sum_of_rows(rows, table, offsets, weights)


def dots_at_entries(
    gradient: Float[Tensor, "T d"],
    W_dec: Float[Tensor, "d_sae d"],
    offsets: Int[Tensor, "T_plus_1"],
    tokens: Int[Tensor, "nnz"],
    features: Int[Tensor, "nnz"],
) -> Float[Tensor, "nnz"]:
    """``gradient @ W_dec.T`` at the active entries alone.

    Args:
        gradient: one row a token.
        W_dec: one row a feature.
        offsets: token t has entries offsets[t] to offsets[t + 1] (exclusive).
        tokens, features: of each entry.
    """
    kernels = _kernels_for(W_dec.device, W_dec.dtype)
    if kernels is None:
        pattern = torch.sparse_csr_tensor(
            offsets,
            features,
            gradient.new_zeros(len(features)),
            (len(gradient), len(W_dec)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, gradient, W_dec.T).values()
    return kernels.dots(gradient, tokens, W_dec, features)


def count(places: Int[Tensor, "nnz"], n: int, counted: Bool[Tensor, "nnz"] | None = None) -> Int[Tensor, "n"]:
    """How often each place, from 0 to n - 1, is named; by the entries ``counted``, or all."""
    if places.device.type == "cpu":
        return torch.bincount(places if counted is None else places[counted], minlength=n)
    return _count_without_waiting(places, n, counted)


def _count_without_waiting(places: Tensor, n: int, counted: Tensor | None) -> Tensor:
    """Sizes come from shapes; bincount, and the choice of some entries, would ask the device for them."""
    ones = torch.ones_like(places) if counted is None else counted.to(places.dtype)
    return places.new_zeros(n).index_add_(0, places, ones)


def _kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, where they serve for tensors like these."""
    return _kernels_on(device) if device.type == "cuda" and dtype in TYPES else None


@cache
def _kernels_on(device: torch.device) -> ModuleType | None:
    """The Triton kernels, once they have been seen to work on this device; None, and a line that says why, if not."""
    try:
        from scansion.execution.cuda import rows as triton_rows

        _try_out(triton_rows, device)
    except Exception as error:  # no Triton, no C compiler, too old a GPU: torch gives the same numbers in each case
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        say(f"sparse steps on {device} are done by torch's own operations, which may be slower: no Triton ({reason})")
        return None
    return triton_rows


def _try_out(kernels: ModuleType, device: torch.device) -> None:
    """Raise unless the kernels run and are right about whole numbers, whose sums are the same in any order."""
    start, nnz = 3, 2 * kernels.PIECE + 3  # a short segment and one that is put together from pieces
    entry = torch.arange(nnz, device=device)
    rows, segments, weights = entry % 3, (entry >= start).long(), (entry % 5).float()
    table = torch.arange(6.0, device=device).view(3, 2)
    expected = torch.zeros(2, 2, device=device).index_add_(0, segments, table[rows] * weights[:, None])
    sums = kernels.sum_of_rows(rows, table, torch.tensor([0, start, nnz], device=device), weights)
    found = kernels.dots(table, rows, sums, segments)
    if not (torch.equal(sums, expected) and torch.equal(found, (table[rows] * expected[segments]).sum(dim=1))):
        raise ArithmeticError("its sums are wrong on this device")
