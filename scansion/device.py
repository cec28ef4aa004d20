"""The one place that decides where tensors live and what type they have."""

from __future__ import annotations

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
