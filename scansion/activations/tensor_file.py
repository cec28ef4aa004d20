"""Write tensors as a safetensors file straight from their memory: ``safetensors.save`` makes a second copy of them first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

# In the order in which safetensors lays tensors out.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the bytes that ``safetensors.torch.save(tensors, metadata)`` would return.

    Args:
        path: the file; not written atomically.
        tensors: contiguous, on the CPU.
        metadata: goes into the header.
    """
    kinds = list(_NAMES)
    ordered = sorted(tensors.items(), key=lambda item: (kinds.index(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(_bytes_of(tensor))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A 32-digit fingerprint of the tensors' names and bytes."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
