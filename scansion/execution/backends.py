"""Which implementation does an operation, and the sizes from which a faster way pays: every such choice in one table.

The choice asks nothing of the user. Where a faster implementation could be used and cannot, one line on stderr says so
and why, and torch does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from scansion.execution.cpu import native
from scansion.progress import say

# --- Costs, from steps timed on both sides of each on a CPU -------------------------------------------------------------

CHUNK = 1 << 21
"""Entries of [tokens, features] held at once: large enough for fast products, small enough to stay out of swap."""

DENSITY = 1 / 4
"""Share of a batch's entries, at most, that may be active for the sparse way to be faster than the dense or banded one."""

RELU_DENSITY = 1 / 6
"""The same against the fused way, which is faster than the dense one."""

FLOOR = 0.8
"""Share of the smallest entry kept in the steps before above which a batch nearly always has entries enough."""

CLEARLY = 1.5
"""How many times :data:`RELU_DENSITY` a few tokens must exceed for the sparse way to be given up before all are read."""

SCREENING_D_IN = 128
"""Width of the activations from which screening pays: below it, full products are cheap."""

SCREENING_WIDTH = 32
"""Features that a token may use, for each that it keeps, from which screening pays."""

SCREENING_TOKENS = 256
"""Tokens from which it pays to round the encoder to bfloat16 for them."""

SCREENING_SHARE = 1 / 8
"""Share of the entries, at most, that may be computed in full for screening to pay."""

SCREENING_FEW = 64
"""Tokens that are screened first, so that a batch for which it does not pay is found out early."""

CACHED = 1 << 16
"""Numbers that are sure to stay in a CPU's cache from one operation to the next."""

# --- Implementations ----------------------------------------------------------------------------------------------------

TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the Triton kernels read. They add up in float32, which would cost a float64 table its precision."""


def choose(operation: str, by_torch: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
    """The fastest function that does an operation on tensors like these.

    Args:
        operation: its name in :data:`BACKENDS`.
        by_torch: torch's version, which works everywhere.
        tensors: those that decide, by their device, type and layout.
    """
    for backend in BACKENDS:
        if operation in backend.operations:
            module = backend.module_for(*tensors)
            if module is not None:
                return getattr(module, operation)
    return by_torch


def name_for(device: torch.device) -> str:
    """Who does the sparse step's sums on this device: ``C``, ``Triton`` or ``torch``."""
    some = torch.zeros(1, device=device)
    return next((backend.name for backend in BACKENDS if backend.module_for(some) is not None), "torch")


@dataclass(frozen=True)
class Backend:
    """A faster implementation of some operations, each a function of this name in its module.

    Attributes:
        name: as ``scansion doctor`` says it.
        operations: their names; see :mod:`scansion.execution.operations`.
        module_for: the module, if it can work on tensors like these; else None.
    """

    name: str
    operations: frozenset[str]
    module_for: Callable[..., ModuleType | None]


def _c_for(*tensors: Tensor) -> ModuleType | None:
    return native if native.supports(*tensors) else None


def _triton_for(*tensors: Tensor) -> ModuleType | None:
    return _kernels_for(tensors[0].device, tensors[0].dtype)


def _kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    return _triton_on(device) if device.type == "cuda" and dtype in TRITON_TYPES else None


C_OPERATIONS = (
    "top_k",
    "above",
    "group",
    "fired",
    "decode",
    "sparse_backward",
    "weighted_sum",
    "remove_parallel",
    "normalise",
)
BACKENDS = (
    Backend("C", frozenset(C_OPERATIONS), _c_for),
    Backend("Triton", frozenset({"sum_of_rows", "dots_at_entries"}), _triton_for),
)
"""The faster implementations, in the order in which they are tried."""


@cache
def _triton_on(device: torch.device) -> ModuleType | None:
    """The Triton kernels, once they have been seen to work on this device; None, and a line that says why, if not."""
    try:
        from scansion.execution.cuda import rows

        _try_out(rows, device)
    except Exception as error:  # no Triton, no C compiler, too old a GPU: torch gives the same numbers in each case
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        say(f"sparse steps on {device} are done by torch's own operations, which may be slower: no Triton ({reason})")
        return None
    return rows


def _try_out(kernels: ModuleType, device: torch.device) -> None:
    """Raise unless the kernels run and are right about whole numbers, whose sums are the same in any order."""
    start, nnz = 3, 2 * kernels.PIECE + 3  # a short segment and one that is put together from pieces
    entry = torch.arange(nnz, device=device)
    rows, segments, weights = entry % 3, (entry >= start).long(), (entry % 5).float()
    table = torch.arange(6.0, device=device).view(3, 2)
    expected = torch.zeros(2, 2, device=device).index_add_(0, segments, table[rows] * weights[:, None])
    offsets = torch.tensor([0, start, nnz], device=device)
    sums = kernels.sum_of_rows(rows, table, offsets, weights)
    dots = kernels.dots_at_entries(table, sums, offsets, rows, segments)
    if not (torch.equal(sums, expected) and torch.equal(dots, (table[rows] * expected[segments]).sum(dim=1))):
        raise ArithmeticError("its sums are wrong on this device")
