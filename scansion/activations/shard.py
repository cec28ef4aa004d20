"""One shard of an activation store: a safetensors file with position as the first axis, read through a memory map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from scansion.activations.tensor_file import digest_of, write_tensors
from scansion.device import DTYPES
from scansion.errors import StoreError
from scansion.files import atomic_file

SIDE_TENSORS = ("tokens", "valid", "doc_ids", "doc_positions")
SIDE_BYTES = 4 + 1 + 4 + 4  # of one token in the side tensors
STATS_TENSORS = ("count", "norm_sum", "square_sum", "act_sum")
_FLOAT64_NUMBERS = 1 << 24
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
            digest = digest_of({name: file.get_tensor(name) for name in ("acts", *SIDE_TENSORS, *STATS_TENSORS)})
        if digest != self.digest:
            raise StoreError(f"{self.path} is damaged: its contents do not match their fingerprint; harvest again")


@dataclass
class ShardBuffer:
    """A shard being filled in memory; positions that a context does not reach stay invalid and zero.

    The activations may be on a CUDA device; everything else is on the CPU.
    """

    acts: Float[Tensor, "L n d_in"]
    tokens: Int[Tensor, "L n"]
    valid: Bool[Tensor, "L n"]
    doc_ids: Int[Tensor, "L n"]
    doc_positions: Int[Tensor, "L n"]

    @classmethod
    def empty(
        cls, length: int, n_contexts: int, d_in: int, dtype: str, device: torch.device | None = None
    ) -> ShardBuffer:
        """A buffer with nothing valid in it; its activations are on ``device``, by default the CPU."""

        def filled(value: int) -> Tensor:
            return torch.full((length, n_contexts), value, dtype=torch.int32)

        return cls(
            acts=torch.zeros(length, n_contexts, d_in, dtype=DTYPES[dtype], device=device),
            tokens=filled(0),
            valid=torch.zeros(length, n_contexts, dtype=torch.bool),
            doc_ids=filled(-1),
            doc_positions=filled(-1),
        )

    def finished(self) -> FinishedShard:
        """The shard with its per-position statistics, on its way to the CPU's memory."""
        tensors = {
            "acts": self.acts,
            "tokens": self.tokens,
            "valid": self.valid,
            "doc_ids": self.doc_ids,
            "doc_positions": self.doc_positions,
            **self._statistics(),
        }
        return FinishedShard({name: _to_cpu(tensor) for name, tensor in tensors.items()}, _now_on(self.acts.device))

    def write(self, path: Path) -> None:
        """Write the shard with its per-position statistics, atomically."""
        self.finished().write(path)

    def _statistics(self) -> dict[str, Tensor]:
        """Sums over valid tokens at each position, in float64, of the stored (rounded) values."""
        length, n_contexts, d_in = self.acts.shape
        on_gpu = self.acts.device.type == "cuda"
        # The float64 copy is kept small: on a CPU one position at a time, on a GPU as many as few launches need.
        at_once = max(1, _FLOAT64_NUMBERS // (n_contexts * d_in)) if on_gpu else 1
        norm_sums: list[Tensor] = []
        square_sums: list[Tensor] = []
        act_sums: list[Tensor] = []
        for start in range(0, length, at_once):
            acts = self.acts[start : start + at_once]
            if (
                not on_gpu
            ):  # there, cells that are not valid are left in: they are zero, and picking cells waits for the GPU
                acts = acts[:, self.valid[start]]
            acts = acts.double()
            norms = acts.norm(dim=2)
            norm_sums.append(norms.sum(dim=1))
            square_sums.append(norms.square().sum(dim=1))
            act_sums.append(acts.sum(dim=1))
        return {
            "count": self.valid.sum(dim=1),
            "norm_sum": torch.cat(norm_sums),
            "square_sum": torch.cat(square_sums),
            "act_sum": torch.cat(act_sums),
        }


@dataclass(frozen=True)
class FinishedShard:
    """A shard's tensors in the CPU's memory, once ``copied``: an event of the GPU that they come from, or None."""

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    @property
    def is_finite(self) -> bool:
        """Whether every activation is a finite number."""
        self._wait()
        # A sum in float64 is finite if and only if all its terms are: none of the stored types comes near its limit.
        return bool(torch.isfinite(self.tensors["act_sum"]).all())

    def write(self, path: Path) -> None:
        """Write the shard atomically."""
        self._wait()
        with atomic_file(path) as temporary:
            write_tensors(temporary, self.tensors, {"digest": digest_of(self.tensors)})

    def _wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


def _to_cpu(tensor: Tensor) -> Tensor:
    """The tensor in the CPU's memory, perhaps before its values are there: see :func:`_now_on`."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _now_on(device: torch.device) -> torch.cuda.Event | None:
    """An event after everything that a GPU has been told to do so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
