"""The one place that decides where tensors live and what type they have."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from scansion.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` -> CUDA, else Apple's MPS, else the CPU; any other name must be usable on this machine.

    Raises:
        ConfigError: the name is not a device, or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); try 'auto'") from error
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no numbers; use 'cpu', 'cuda' or 'auto'")
    return device


def float64_device(device: torch.device) -> torch.device:
    """Where sums over tensors on ``device`` are kept in float64: there, or on the CPU for Apple's GPUs, which lack float64."""
    return torch.device("cpu") if device.type == "mps" else device


def resolve_dtype(name: str) -> torch.dtype:
    """``float32`` | ``bfloat16`` | ``float16`` -> the torch type.

    Raises:
        ConfigError: any other name.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The inverse of :func:`resolve_dtype`."""
    return str(dtype).removeprefix("torch.")


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16; others imitate them, which is slow."""
    return any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))


@cache
def disable_malloc_trim() -> None:
    """Make Linux's C library keep freed memory for this process instead of returning it to the system.

    By default it returns large blocks, such as gradients, and requests them again at every step, page by page; at d_sae
    16,384 and d_in 2304 that takes a tenth of a step. On other systems this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)
