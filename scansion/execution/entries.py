"""Active entries as operations pass them on, before they are a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Entries of a matrix row by row: the feature and the value of each, and the number of entries in each row.
RowEntries: TypeAlias = tuple[Int[Tensor, "_"], Float[Tensor, "_"], Int[Tensor, "_"]]
# The features of the columns: each tensor holds for the rows up to a number (exclusive). None: column i is feature i.
Names: TypeAlias = Sequence[tuple[int, Int[Tensor, "w"] | None]]


def tokens_of(offsets: Int[Tensor, "T_plus_1"], nnz: int) -> Int[Tensor, "nnz"]:
    """The token of each entry."""
    counts = offsets.diff()
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=nnz)
