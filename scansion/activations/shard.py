"""One shard of an activation store: a safetensors file with position as the first axis, read through a memory map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.corpus.contexts import TURN_TENSORS
from scansion.device import DTYPES
from scansion.errors import DamagedError
from scansion.files import atomic_file
from scansion.tensor_file import TYPES, digest_of, layout, write_tensors

SIDE_TENSORS = ("tokens", "valid", "doc_ids", "doc_positions")
SIDE_BYTES = 4 + 1 + 4 + 4  # of one token in the side tensors
STATS_TENSORS = ("count", "norm_sum", "square_sum", "act_sum")
_FLOAT64_NUMBERS = 1 << 24
HOW_TO_REPAIR = "`scansion doctor {folder} --repair` computes damaged shards again"
_LONGEST_HEADER = 1 << 20
_ALL = slice(None)
# NumPy has no bfloat16: activations are picked as integers of their size.
_BITS = {4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class ShardFacts:
    """What a shard must be, as its store's manifest says.

    Attributes:
        digest: fingerprint of its tensors.
        length, n_contexts, d_in: shape of its activations.
        dtype: their type.
        turns: whether it has the turn of each token.
    """

    digest: str
    length: int
    n_contexts: int
    d_in: int
    dtype: str
    turns: bool = False

    def layout(self) -> dict[str, dict[str, object]]:
        """The header of its file, metadata aside."""
        side = (self.length, self.n_contexts)
        by_position = (self.length,)
        return layout(
            {
                "acts": (DTYPES[self.dtype], (*side, self.d_in)),
                "tokens": (torch.int32, side),
                "valid": (torch.bool, side),
                "doc_ids": (torch.int32, side),
                "doc_positions": (torch.int32, side),
                **{name: (torch.int32, side) for name in TURN_TENSORS if self.turns},
                "count": (torch.int64, by_position),
                "norm_sum": (torch.float64, by_position),
                "square_sum": (torch.float64, by_position),
                "act_sum": (torch.float64, (self.length, self.d_in)),
            }
        )


class Shard:
    """The activations of successive contexts, in one file, which is checked as a whole when it is first read.

    The file is read through a memory map that holds no file handle, so any number of shards can be open.

    Args:
        path: the file.
        facts: what it must be.
    """

    _filled_later = False
    """Whether bytes are written into the file while it is mapped, which the map then has to show."""

    def __init__(self, path: Path, facts: ShardFacts) -> None:
        self.path = path
        self.facts = facts

    @property
    def n_contexts(self) -> int:
        """Number of contexts in the shard."""
        return self.facts.n_contexts

    def rows(self, positions: np.ndarray, contexts: np.ndarray) -> Float[Tensor, "m d_in"]:
        """Copy the activations at m (position, context) pairs; the shard's first context is number 0."""
        return torch.from_numpy(self._bits[positions, contexts]).view(DTYPES[self.facts.dtype])

    def contexts(self, start: int, stop: int, positions: slice = _ALL) -> Float[Tensor, "L n d_in"]:
        """Copy contexts ``start`` to ``stop`` (exclusive) at all or some positions; the shard's first context is number 0."""
        return torch.from_numpy(np.array(self._bits[positions, start:stop])).view(DTYPES[self.facts.dtype])

    def tensors(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Copies of the named side or statistics tensors."""
        return {name: self._whole[name].clone() for name in names}

    def verify(self) -> None:
        """Read every byte.

        Raises:
            DamagedError: the shard is not what was written.
        """
        self.__dict__.pop("_bits", None)  # what was read before is forgotten
        self.__dict__["_whole"] = self._read(compare=True)

    def trust(self) -> None:
        """Take the tensors as they are when they are first read: another process compares them with their digest."""
        if "_whole" not in self.__dict__:
            self.__dict__["_whole"] = self._read(compare=False)

    def extent(self) -> tuple[int, int, int]:
        """Where in the file the activations begin and end, and its size."""
        start, _ = _header(self.path)
        offsets = {name: cast("tuple[int, int]", entry["data_offsets"]) for name, entry in self.facts.layout().items()}
        begin, end = offsets["acts"]
        return start + begin, start + end, start + max(stop for _, stop in offsets.values())

    @cached_property
    def _bits(self) -> np.ndarray:
        return self._whole["acts"].view(_BITS[self._whole["acts"].element_size()]).numpy()

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        try:
            return self._read()
        except DamagedError as error:
            raise self._with_advice(error) from error

    def _with_advice(self, error: DamagedError) -> DamagedError:
        return DamagedError(f"{error}; {HOW_TO_REPAIR.format(folder=self.path.parent)}")

    def _read(self, compare: bool = True) -> dict[str, Tensor]:
        """Views of the mapped tensors, once all their bytes were read and compared with the digest, unless told not to."""
        start, header = _header(self.path)
        laid_out = self.facts.layout()
        digest = _metadata(header).get("digest")
        if {name: entry for name, entry in header.items() if name != "__metadata__"} != laid_out:
            raise DamagedError(f"{self.path} is damaged: its tensors are not those of this store")
        _, _, size = self.extent()
        if not self.path.is_file() or self.path.stat().st_size != size:
            raise DamagedError(f"{self.path} is damaged: it was cut short or grew")
        try:
            mapped = torch.from_file(str(self.path), shared=self._filled_later, size=size, dtype=torch.uint8)
        except RuntimeError as error:
            raise DamagedError(f"{self.path} cannot be read: {str(error).splitlines()[0]}") from error
        tensors: dict[str, Tensor] = {}
        for name, entry in laid_out.items():
            begin, end = cast("tuple[int, int]", entry["data_offsets"])
            flat = mapped[start + begin : start + end].view(TYPES[str(entry["dtype"])])
            tensors[name] = flat.view(cast("list[int]", entry["shape"]))
        if digest != self.facts.digest:
            raise DamagedError(f"{self.path} is damaged, or is another shard: the manifest has another digest for it")
        if compare and digest_of(tensors) != digest:
            raise DamagedError(f"{self.path} is damaged: its contents do not match their digest")
        return tensors


def written_digest(path: Path) -> str:
    """The digest that a shard's header names.

    Raises:
        DamagedError: the header cannot be read.
    """
    return str(_metadata(_header(path)[1]).get("digest", ""))


def written_for(path: Path) -> str:
    """Which store and which place in it a shard was written for; empty where an earlier version wrote it."""
    return str(_metadata(_header(path)[1]).get("place", ""))


def n_contexts_in(path: Path) -> int:
    """How many contexts a shard holds, as its header says.

    Raises:
        DamagedError: the header cannot be read.
    """
    shape = _header(path)[1].get("acts", {}).get("shape")
    n_contexts: object = (
        cast("list[Any]", shape)[1] if isinstance(shape, list) and len(cast("list[Any]", shape)) == 3 else 0
    )
    if not isinstance(n_contexts, int) or n_contexts < 1:
        raise DamagedError(f"{path} is damaged: it has no activations")
    return n_contexts


def _header(path: Path) -> tuple[int, dict[str, dict[str, object]]]:
    """Where the tensors begin, and the file's header."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LONGEST_HEADER:
                raise ValueError("the header's length is absurd")
            header = json.loads(file.read(size))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it has no readable header") from error
    if not isinstance(header, dict) or not all(
        isinstance(entry, dict) for entry in cast("dict[str, Any]", header).values()
    ):
        raise DamagedError(f"{path} is damaged: it has no readable header")
    return 8 + size, cast("dict[str, dict[str, object]]", header)


def _metadata(header: dict[str, dict[str, object]]) -> dict[str, object]:
    return header.get("__metadata__", {})


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
    turns: Int[Tensor, "L n"] | None = None
    positions_in_turn: Int[Tensor, "L n"] | None = None

    @classmethod
    def empty(
        cls,
        length: int,
        n_contexts: int,
        d_in: int,
        dtype: str,
        device: torch.device | None = None,
        turns: bool = False,
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
            **{name: filled(-1) for name in TURN_TENSORS if turns},
        )

    def of_tokens(self) -> dict[str, Int[Tensor, "L n"]]:
        """The tensors that hold a value for each token, validity and activations aside."""
        names = ("tokens", "doc_ids", "doc_positions", *TURN_TENSORS)
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def finished(self) -> FinishedShard:
        """The shard with its per-position statistics, on its way to the CPU's memory."""
        tensors = {
            "acts": self.acts,
            "valid": self.valid,
            **self.of_tokens(),
            **self._statistics(),
        }
        return FinishedShard({name: _to_cpu(tensor) for name, tensor in tensors.items()}, _now_on(self.acts.device))

    def write(self, path: Path, place: str) -> None:
        """Write the shard with its per-position statistics, atomically; see :meth:`FinishedShard.write`."""
        self.finished().write(path, place)

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

    def write(self, path: Path, place: str) -> None:
        """Write the shard atomically.

        Args:
            path: the file.
            place: which store and which contexts of it the shard holds, so that it is never taken for another one.
        """
        self._wait()
        with atomic_file(path) as temporary:
            write_tensors(temporary, self.tensors, {"digest": digest_of(self.tensors), "place": place})

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
