"""How kernels are launched: on the device of their tensors, with so many programs and warps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of 4 bytes of one row that a thread holds, for kernels that hold whole rows: more would not fit its registers.
PER_THREAD = 16


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Run a Triton kernel.

    Args:
        kernel: a function made by ``triton.jit``.
        programs: how many of them, along each axis.
        arguments: the kernel's own; the first is a tensor on the device.
        warps: of 32 threads, per program.
        constants: arguments that are compiled into the kernel.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[programs](*arguments, num_warps=warps, **constants)


def ceil_div(total: int, size: int) -> int:
    """Number of blocks of ``size`` that cover ``total``."""
    return -(-total // size)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``: Triton's blocks have such sizes."""
    return 1 << max(0, n - 1).bit_length()


def warps_per_row(width: int) -> int:
    """So many that each thread holds :data:`PER_THREAD` numbers of a row, if a program may have so many."""
    return min(32, max(1, power_of_two(width) // (32 * PER_THREAD)))
