"""Tensors as safetensors files with a digest of what they hold, which is compared whenever one is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scansion.errors import DamagedError

# In the order in which safetensors lays tensors out.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {name: dtype for dtype, name in _NAMES.items()}
"""Type of tensors by its name in a header."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], of: str = "") -> str:
    """Write tensors with their digest; returns the digest.

    Args:
        path: the file; not written atomically.
        tensors: of any types and shapes, on the CPU.
        of: what they belong to, for :func:`load_tensors` to compare.
    """
    digest = digest_with_shapes(tensors)
    write_tensors(path, tensors, {"digest": digest, "of": of})
    return digest


def load_tensors(path: Path, digest: str | None = None, of: str | None = None) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote. A file without a digest, as of earlier versions, is taken as it is.

    Args:
        path: the file.
        digest: which one it has to be, so that a file of something else is noticed; None for any.
        of: what it has to belong to; None for anything.

    Raises:
        DamagedError: it is missing, cut short, changed, or another file.
    """
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata: dict[str, str] = file.metadata() or {}
            written = metadata.get("digest")
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise DamagedError(f"{path} is missing or damaged: {' '.join(str(error).split())}") from error
    if written is not None and written != digest_with_shapes(tensors):
        raise DamagedError(f"{path} is damaged: its tensors do not match their digest")
    if of is not None and written is not None and metadata.get("of") != of:
        raise DamagedError(f"{path} is not the file that was written here: it belongs to something else")
    if digest is not None and written != digest:
        raise DamagedError(f"{path} is not the file that was written here: its digest is another one's")
    return tensors


def has_digest(path: Path) -> bool:
    """Whether a readable file has a digest: one that :func:`save_tensors` wrote, and not an earlier version."""
    with cast(Any, safe_open)(path, framework="pt") as file:
        return "digest" in (file.metadata() or {})


def digest_with_shapes(tensors: Mapping[str, Tensor]) -> str:
    """A 32-digit fingerprint of the tensors' names, types, shapes and bytes."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the bytes that ``safetensors.torch.save(tensors, metadata)`` would return, without its second copy of them.

    Metadata are written in their order, which is another one each time in files of safetensors itself: equal tensors give
    equal files.

    Args:
        path: the file; not written atomically.
        tensors: on the CPU.
        metadata: goes into the header.
    """
    laid_out = layout({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    header: dict[str, object] = {"__metadata__": metadata, **laid_out}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in laid_out:
            file.write(bytes_of(tensors[name]))


def layout(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, dict[str, object]]:
    """The header of a safetensors file, metadata aside, of tensors with these types and shapes."""
    kinds = list(_NAMES)
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (kinds.index(item[1][0]), item[0])):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    return header


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A 32-digit fingerprint of the tensors' names and bytes."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes, in order of its indices; copied only if it is not contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
