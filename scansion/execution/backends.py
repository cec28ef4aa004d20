"""Which implementation does an operation, and the sizes from which a faster way is worth taking: every such choice.

The user has nothing to set. If a faster implementation should work here and does not, one line on stderr says why, and torch
does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from scansion.execution.cpu import native
from scansion.progress import say

# --- Costs: each limit was set by timing steps below and above it on a CPU ----------------------------------------------

CHUNK = 1 << 21
"""Entries of [tokens, features] that a CPU holds at a time (8 MB of float32): enough for fast products, and little memory."""

BYTES_PER_ENTRY = 64
"""A GPU, where each chunk costs launches, holds as many entries as it has this many bytes: a sixteenth of it in float32."""

DENSITY = 1 / 4
"""Share of a batch's entries, at most, that may be active for the sparse way to be faster than the dense or banded one."""

RELU_DENSITY = 1 / 6
"""The same limit for ReLU, where the alternative is the fused way, which is faster than the dense one."""

FLOOR = 0.8
"""BatchTopK first looks at entries above this share of the smallest one kept in recent steps: they are nearly always enough."""

CLEARLY = 1.5
"""If the first tokens have this many times :data:`RELU_DENSITY` active, the sparse way is given up before all are read."""

SCREENING_D_IN = 128
"""Least width of the activations for screening to be faster: below it, full products are cheap."""

SCREENING_WIDTH = 32
"""Least number of features that a token may use per feature that it keeps, for screening to be faster."""

SCREENING_TOKENS = 256
"""Least number of tokens for screening to be faster: the encoder is rounded once for all of them."""

SCREENING_SHARE = 1 / 8
"""Share of the entries, at most, that may be computed in float32 for screening to be faster."""

SCREENING_FEW = 64
"""Tokens that are screened first, so that a batch for which screening is not faster is noticed early."""

CACHED = 1 << 16
"""Numbers (256 kB of float32) that stay in any CPU's cache from one operation to the next."""


def entries_at_once(device: torch.device) -> int:
    """Entries of [tokens, features] to hold at once, fewer than 2^31, so that kernels count them in 32 bits.

    A constant of the device, since sums depend on where chunks end.
    """
    if device.type != "cuda":
        return CHUNK
    return min(2**31 - 1, max(CHUNK, torch.cuda.get_device_properties(device).total_memory // BYTES_PER_ENTRY))


def returns_first_product(device: torch.device) -> bool:
    """True where the gradient of a matrix need not begin at 0. On a CPU it does, so that results keep their last bit."""
    return device.type == "cuda"


def batches_bands(device: torch.device) -> bool:
    """True where one batched product of all bands is faster than a product for each."""
    return device.type == "cuda"


# --- Implementations ----------------------------------------------------------------------------------------------------

TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types that the Triton kernels accept. Not float64: they sum in float32, which would lose its precision."""


_T = TypeVar("_T")


def choose(operation: str, by_torch: _T, *tensors: Tensor) -> Callable[..., Any] | _T:
    """The fastest function that does an operation on tensors like these.

    Args:
        operation: its name in :data:`BACKENDS`.
        by_torch: torch's version, which works everywhere; None for an operation that has none.
        tensors: those that decide, by their device, type and layout.
    """
    for backend in BACKENDS:
        if operation in backend.operations:
            module = backend.module_for(*tensors)
            if module is not None:
                return getattr(module, operation)
    return by_torch


def name_for(device: torch.device) -> str:
    """The implementation that computes the sparse step's sums on this device: ``C``, ``Triton`` or ``torch``."""
    example = torch.zeros(1, device=device)
    return next((backend.name for backend in BACKENDS if backend.module_for(example) is not None), "torch")


@dataclass(frozen=True)
class Backend:
    """A faster implementation of some operations, each a function of this name in its module.

    Attributes:
        name: as ``scansion doctor`` shows it.
        operations: their names; see :mod:`scansion.execution.operations` and :mod:`scansion.execution.activation`.
        module_for: the module, if it can work on tensors like these; else None.
    """

    name: str
    operations: frozenset[str]
    module_for: Callable[..., ModuleType | None]


def _c_for(*tensors: Tensor) -> ModuleType | None:
    return native if native.supports(*tensors) else None


def _triton_for(*tensors: Tensor) -> ModuleType | None:
    return kernels_for(tensors[0].device, tensors[0].dtype)


def kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, if they can work on tensors of this type there; else None."""
    return _triton_on(device) if device.type == "cuda" and dtype in TRITON_TYPES else None


SCREENING_TYPES = {
    "AVX-512 BF16": torch.bfloat16,
    "AVX-512 VNNI": torch.int16,
    "AVX-VNNI": torch.int16,
    "AVX2": torch.int16,
}
"""Instructions that multiply faster than in float32, fastest first, and the type of the products by which they screen."""


def screening() -> tuple[str, torch.dtype] | None:
    """The first of :data:`SCREENING_TYPES` that this processor has; None if float32 is as fast, or without the C part."""
    available = native.instructions()
    return next((each for each in SCREENING_TYPES.items() if each[0] in available), None)


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
TRITON_OPERATIONS = (
    "top_k",
    "largest_of_all",
    "group",
    "sum_of_rows",
    "sum_per_feature",
    "sum_per_position",
    "dots_at_entries",
    "apply_mask",
    "activate",
    "activate_backward",
    "adam_step",
)
BACKENDS = (
    Backend("C", frozenset(C_OPERATIONS), _c_for),
    Backend(
        "Triton",
        frozenset(TRITON_OPERATIONS),
        _triton_for,
    ),
)
"""The faster implementations, in the order in which they are tried."""


@cache
def _triton_on(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if a small trial on this device gives exact results. If not: None, and a line that says why."""
    try:
        from scansion.execution.cuda import kernels

        kernels.try_out(device)
    except Exception as error:  # no Triton, no C compiler, too old a GPU: torch gives the same numbers in each case
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        say(
            f"sparse steps on {device} use torch's operations, which may be slower: Triton does not work here ({reason})"
        )
        return None
    return kernels
