"""One shard of an activation store: a safetensors file with position as the first axis, read through a memory map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from scansion.device import DTYPES
from scansion.errors import StoreError
from scansion.files import atomic_file

SIDE_TENSORS = ("tokens", "valid", "doc_ids", "doc_positions")
SIDE_BYTES = 4 + 1 + 4 + 4  # of one token in the side tensors
STATS_TENSORS = ("count", "norm_sum", "square_sum", "act_sum")
_NUMPY_TYPES = {"F32": np.dtype("<i4"), "BF16": np.dtype("<i2"), "F16": np.dtype("<i2")}
_TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Shard:
    """The activations of ``n_contexts`` successive contexts, in one file. A file that is there is complete."""

    path: Path

    @cached_property
    def _header(self) -> tuple[int, dict[str, dict[str, object]]]:
        with self.path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(size))
                end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            except (ValueError, KeyError) as error:
                raise StoreError(f"{self.path} is damaged: it has no readable header; harvest again") from error
        if self.path.stat().st_size != 8 + size + end:
            raise StoreError(f"{self.path} is damaged: it was cut short or grew; harvest again")
        return 8 + size, header

    @property
    def digest(self) -> str:
        """The fingerprint that the tensors had when they were written."""
        metadata = self._header[1].get("__metadata__", {})
        return str(metadata.get("digest", ""))

    @cached_property
    def _bits(self) -> np.ndarray:
        start, header = self._header
        entry = header["acts"]
        begin, _ = entry["data_offsets"]  # type: ignore[misc]
        return np.memmap(
            self.path,
            _NUMPY_TYPES[str(entry["dtype"])],
            "r",
            offset=start + begin,
            shape=tuple(entry["shape"]),  # type: ignore[call-overload, arg-type]
        )

    @property
    def n_contexts(self) -> int:
        """Number of contexts in the shard."""
        return self._bits.shape[1]

    def rows(self, positions: np.ndarray, contexts: np.ndarray) -> Float[Tensor, "m d_in"]:
        """Copy the activations at m (position, context) pairs; the shard's first context is number 0."""
        bits = torch.from_numpy(self._bits[positions, contexts])
        return bits.view(_TORCH_TYPES[str(self._header[1]["acts"]["dtype"])])

    def contexts(self, start: int, stop: int) -> Float[Tensor, "L n d_in"]:
        """Copy whole contexts ``start`` to ``stop`` (exclusive); the shard's first context is number 0."""
        bits = torch.from_numpy(np.array(self._bits[:, start:stop]))
        return bits.view(_TORCH_TYPES[str(self._header[1]["acts"]["dtype"])])

    def tensors(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Read the named side or statistics tensors."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def verify(self) -> None:
        """Re-read every byte and raise :class:`StoreError` if the shard is not what was written."""
        with safe_open(self.path, framework="pt") as file:
            digest = _digest({name: file.get_tensor(name) for name in ("acts", *SIDE_TENSORS, *STATS_TENSORS)})
        if digest != self.digest:
            raise StoreError(f"{self.path} is damaged: its contents do not match their fingerprint; harvest again")


@dataclass
class ShardBuffer:
    """A shard being filled in memory; positions that a context does not reach stay invalid and zero."""

    acts: Float[Tensor, "L n d_in"]
    tokens: Int[Tensor, "L n"]
    valid: Bool[Tensor, "L n"]
    doc_ids: Int[Tensor, "L n"]
    doc_positions: Int[Tensor, "L n"]

    @classmethod
    def empty(cls, length: int, n_contexts: int, d_in: int, dtype: str) -> ShardBuffer:
        """A buffer with nothing valid in it."""

        def filled(value: int) -> Tensor:
            return torch.full((length, n_contexts), value, dtype=torch.int32)

        return cls(
            acts=torch.zeros(length, n_contexts, d_in, dtype=DTYPES[dtype]),
            tokens=filled(0),
            valid=torch.zeros(length, n_contexts, dtype=torch.bool),
            doc_ids=filled(-1),
            doc_positions=filled(-1),
        )

    def write(self, path: Path) -> None:
        """Write the shard with its per-position statistics, atomically."""
        tensors = {
            "acts": self.acts,
            "tokens": self.tokens,
            "valid": self.valid,
            "doc_ids": self.doc_ids,
            "doc_positions": self.doc_positions,
            **self._statistics(),
        }
        # Not safetensors' save_file: if killed, it leaves a temporary file under a name that remove_leftovers does not know.
        with atomic_file(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"digest": _digest(tensors)}))

    def _statistics(self) -> dict[str, Tensor]:
        """Sums over valid tokens at each position, in float64, of the stored (rounded) values."""
        length, _, d_in = self.acts.shape
        norm_sum, square_sum = (torch.zeros(length, dtype=torch.float64) for _ in range(2))
        act_sum = torch.zeros(length, d_in, dtype=torch.float64)
        for position in range(length):  # one position at a time keeps the float64 copy small
            acts = self.acts[position, self.valid[position]].double()
            norms = acts.norm(dim=1)
            norm_sum[position], square_sum[position] = norms.sum(), norms.square().sum()
            act_sum[position] = acts.sum(dim=0)
        return {"count": self.valid.sum(dim=1), "norm_sum": norm_sum, "square_sum": square_sum, "act_sum": act_sum}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
