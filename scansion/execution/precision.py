"""The type in which large products read their operands, and copies of weights in it.

Under ``torch.autocast`` in bfloat16, products on a GPU read bfloat16 and add up in float32. Parameters, Adam's moments, losses
and gradients of parameters stay in float32. The CPU's sparse way rounds by itself where that loses nothing (see
:mod:`scansion.execution.cpu.screening`), so there it reads float32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from scansion.errors import ConfigError
from scansion.execution import backends

Precision = Literal["float32", "tf32", "bf16"]


def resolve_precision(name: Literal["auto", "float32", "tf32", "bf16"], device: torch.device) -> Precision:
    """``auto`` -> bf16 on NVIDIA GPUs that have it, else float32.

    Raises:
        ConfigError: the device does not have what is named.
    """
    on_nvidia = device.type == "cuda" and torch.version.hip is None
    has_bf16 = on_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if has_bf16 else "float32"
    if name == "tf32" and not has_bf16:
        raise ConfigError(f"precision tf32 needs an NVIDIA GPU of 2020 or later, not {device}; use 'auto' or 'float32'")
    if name == "bf16" and on_nvidia and not has_bf16:
        raise ConfigError(
            f"precision bf16 is not available on {device}, a GPU from before 2020; use 'auto' or 'float32'"
        )
    return name


@contextmanager
def products_in(precision: Precision) -> Generator[None, None, None]:
    """While the block runs, products of float32 tensors on NVIDIA GPUs may round their operands to TF32, if that is named."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """While the block runs, large products read bfloat16, if that is named. For forward passes: the gradient follows."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


class _Copy(NamedTuple):
    version: int
    tensor: Tensor


_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def reads_bfloat16(device: torch.device) -> bool:
    """True if the kernels of the sparse and the fused way should read bfloat16 on this device now."""
    return (
        device.type != "cpu"
        and torch.is_autocast_enabled(device.type)
        and torch.get_autocast_dtype(device.type) == torch.bfloat16
        and backends.kernels_for(device, torch.bfloat16) is not None
    )


def operand(weights: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
    """A parameter as large products should read it: itself, or its copy in bfloat16, of the same layout. No gradient."""
    return bfloat16_copy(weights) if reads_bfloat16(weights.device) else weights.detach()


def bfloat16_copy(weights: Float[Tensor, "*size"]) -> BFloat16[Tensor, "*size"]:
    """A copy that is made once, and again only after torch has changed the parameter."""
    kept = copy_of(weights)
    if kept is None:
        kept = weights.detach().to(torch.bfloat16)
        keep_copy(weights, kept)
    return kept


def keep_copy(weights: Float[Tensor, "*size"], copy: BFloat16[Tensor, "*size"]) -> None:
    """Say that this copy holds the parameter's present numbers."""
    _copies[weights] = _Copy(weights._version, copy)


def copy_of(weights: Float[Tensor, "*size"]) -> BFloat16[Tensor, "*size"] | None:
    """The copy that was made of a parameter, if torch has not changed the parameter since. Who changes both keeps it."""
    kept = _copies.get(weights)
    return kept.tensor if kept is not None and kept.version == weights._version else None


def add_product(
    total: Float[Tensor, "n m"], left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], factor: float = 1.0
) -> None:
    """Add ``factor * left @ right`` to a total in place; products of bfloat16 numbers are added up in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=factor)
    else:
        total.add_(product(left, right, total.dtype), alpha=factor)


def product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], dtype: torch.dtype) -> Float[Tensor, "n m"]:
    """``left @ right``, added up and returned in ``dtype``."""
    if left.device.type == "cuda" and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)
