"""Activations of one's own (audio, genomes, board games, time series) as a store that trains, evaluates and shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations.filling import seal
from scansion.activations.shard import ShardBuffer
from scansion.activations.store import MANIFEST, OWN, SHARD_NAME, ActivationStore, StoreIdentity
from scansion.device import DTYPES, dtype_name, resolve_dtype
from scansion.errors import ConfigError, ShapeError, StoreError
from scansion.files import atomic_folder, fingerprint, one_line_io_errors, require_writable
from scansion.progress import progress
from scansion.shapes import require_shape
from scansion.tensor_file import bytes_of

_LARGEST = 2**31 - 1
_LONGEST = 2**20
_AT_ONCE = 256

Acts = Any  # a tensor [C, L, d_in], a sequence of [L_i, d_in], or an iterator of tensors [c, L, d_in]


@dataclass
class _Rows:
    """Successive contexts: activations, and what is known of every token."""

    acts: Float[Tensor, "n L d_in"]
    valid: Bool[Tensor, "n L"]
    positions: Int[Tensor, "n L"]
    tokens: Int[Tensor, "n L"]
    documents: Int[Tensor, "n L"]

    def __getitem__(self, rows: slice) -> _Rows:
        return _Rows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.acts)


def write_own_store(
    folder: Path,
    acts: Acts,
    *,
    valid: Any,
    positions: Any,
    tokens: Any,
    documents: Any,
    name: str,
    hook_point: str,
    split: str,
    dtype: str | None,
    shard_bytes: int,
) -> ActivationStore:
    """See :meth:`ActivationStore.from_tensors`."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; name a new folder")
    if split not in ("train", "held_out"):
        raise ConfigError(f"split={split!r}: it is 'train' or 'held_out'")
    if not name:
        raise ConfigError("name is empty; say what made the activations")
    is_store = (folder / MANIFEST).exists()
    if folder.exists() and any(folder.iterdir()) and not is_store:
        raise StoreError(f"{folder} is not empty and holds no store; choose another folder")
    require_writable(folder.parent)
    chunks = _Chunks({"valid": valid, "positions": positions, "tokens": tokens, "documents": documents})
    with one_line_io_errors(f"writing {folder}"), atomic_folder(folder) as temporary:
        identity = _write(temporary, chunks, acts, (name, hook_point, split), dtype, shard_bytes)
        if is_store and (different := ActivationStore(folder).identity.differences(identity)):
            raise StoreError(
                f"{folder} holds other activations ({'; '.join(different)}); choose another folder or delete it"
            )
    return ActivationStore(folder)


def _write(
    folder: Path, chunks: _Chunks, acts: Acts, names: tuple[str, str, str], dtype: str | None, shard_bytes: int
) -> StoreIdentity:
    """Fill ``folder`` with the shards and the manifest of a store."""
    written = _Written(folder, shard_bytes, dtype)
    with progress("write activations", len(acts) if hasattr(acts, "__len__") else None, "contexts") as advance:
        for rows in chunks.of(acts):
            written.add(rows, chunks.n_positions(rows))
            advance(len(rows))
    written.end_shard()
    if not written.n_tokens:
        raise ShapeError(f"acts holds no {'valid token' if written.n_contexts else 'context'}; expected at least one")
    name, hook_point, split = names
    identity = StoreIdentity(
        model=name,
        model_revision=OWN,
        model_dtype=written.dtype,
        hook_point=hook_point,
        d_in=written.d_in,
        context_length=written.n_positions,
        n_contexts=written.n_contexts,
        contexts=fingerprint([digest.hexdigest() for digest in written.digests.values()]),
        corpus={"source": OWN},
        split=split,
        dtype=written.dtype,
    )
    seal(folder, identity, written.n_tokens, written.per_shard)
    return identity


class _Written:
    """A store being written: shards of equally many contexts, however many come at once."""

    def __init__(self, folder: Path, shard_bytes: int, dtype: str | None) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self.dtype = dtype or ""
        self.n_contexts = self.n_tokens = self.n_positions = self.d_in = self.per_shard = 0
        self.digests = {field.name: xxhash.xxh3_128() for field in fields(_Rows)}
        self._buffer: ShardBuffer | None = None
        self._n_filled = self._n_shards = 0

    def add(self, rows: _Rows, n_positions: int) -> None:
        if not self.per_shard:
            given = str(rows.acts.dtype).removeprefix("torch.")
            self.dtype = dtype_name(resolve_dtype(self.dtype or (given if given in DTYPES else "float32")))
            self.n_positions, self.d_in = n_positions, rows.acts.shape[2]
            if not self.d_in or not n_positions:
                raise ShapeError(f"acts has {n_positions} positions of width {self.d_in}; expected at least 1 of each")
            of_context = n_positions * self.d_in * DTYPES[self.dtype].itemsize
            self.per_shard = max(1, self._shard_bytes // of_context)
        if rows.acts.shape[2] != self.d_in or n_positions != self.n_positions:
            raise ShapeError(
                f"context {self.n_contexts} has {n_positions} positions of width {rows.acts.shape[2]}, and those before it "
                f"{self.n_positions} of width {self.d_in}"
            )
        rows.acts = rows.acts.to(DTYPES[self.dtype])
        for name, digest in self.digests.items():
            tensor = getattr(rows, name)
            digest.update(bytes_of(tensor[rows.valid] if name != "valid" else tensor))
        while len(rows):
            room = self.per_shard - self._n_filled
            self._fill(rows[:room])
            rows = rows[room:]
            if self._n_filled == self.per_shard:
                self.end_shard()

    def _fill(self, rows: _Rows) -> None:
        if self._buffer is None:
            self._buffer = ShardBuffer.empty(self.n_positions, self.per_shard, self.d_in, self.dtype)
        row, column = rows.valid.nonzero(as_tuple=True)
        positions = rows.positions[row, column]
        cell = (positions, row + self._n_filled)
        buffer = self._buffer
        buffer.acts[cell] = rows.acts[row, column]
        buffer.tokens[cell] = rows.tokens[row, column].int()
        buffer.doc_ids[cell] = rows.documents[row, column].int()
        buffer.doc_positions[cell] = positions.int()
        buffer.valid[cell] = True
        self._n_filled += len(rows)
        self.n_contexts += len(rows)
        self.n_tokens += len(row)

    def end_shard(self) -> None:
        """Write the shard that was begun, if there is one."""
        if self._buffer is None:
            return
        whole, n = self._buffer, self._n_filled
        # The last shard has fewer contexts.
        tensors = {field.name: getattr(whole, field.name) for field in fields(whole)}
        shard = ShardBuffer(**{name: tensor[:, :n] for name, tensor in tensors.items() if tensor is not None})
        finished = shard.finished()
        if not finished.is_finite:
            raise StoreError(
                f"not all activations of contexts {self.n_contexts - n} to {self.n_contexts - 1} are finite in {self.dtype}; "
                f"leave those tokens out with `valid`{'' if self.dtype == 'float32' else ', or store float32'}"
            )
        finished.write(self._folder / SHARD_NAME.format(f"{self._n_shards:05d}"), "")
        self._buffer, self._n_filled, self._n_shards = None, 0, self._n_shards + 1


class _Chunks:
    """Contexts in chunks, with what is known of their tokens, each checked."""

    def __init__(self, side: dict[str, Any]) -> None:
        self._side = {name: value for name, value in side.items() if value is not None}
        self._start = 0

    def n_positions(self, rows: _Rows) -> int:
        """The length of the store's position axis: of the contexts, unless positions are given."""
        given = self._side.get("positions")
        if given is None:
            return rows.acts.shape[1]
        return 1 + max(int(torch.as_tensor(row).max()) for row in given)

    def of(self, acts: Acts) -> Iterator[_Rows]:
        if hasattr(acts, "ndim"):
            whole = torch.as_tensor(acts)
            if whole.ndim != 3:
                raise ShapeError(
                    f"acts has the shape {list(whole.shape)}; expected [contexts, positions, width], or a list with a tensor "
                    "[positions, width] for each context"
                )
            yield from map(self._next, whole.split(_AT_ONCE))
        elif isinstance(acts, Sequence) and not all(
            getattr(each, "ndim", 0) == 3 for each in cast("Sequence[Any]", acts)
        ):
            each = [torch.as_tensor(context) for context in cast("Sequence[Any]", acts)]
            if any(context.ndim != 2 for context in each):
                raise ShapeError("acts is a list; expected a tensor [positions, width] for each context")
            length = max(map(len, each), default=0)
            for start in range(0, len(each), _AT_ONCE):
                some = each[start : start + _AT_ONCE]
                lengths = torch.tensor([len(context) for context in some])
                padded = torch.zeros(len(some), length, some[0].shape[1], dtype=some[0].dtype)
                for row, context in zip(padded, some, strict=True):
                    require_shape("a context of acts", context, "_ d_in", d_in=padded.shape[2])
                    row[: len(context)] = context
                yield self._next(padded, torch.arange(length) < lengths[:, None])
        else:
            for chunk in acts:
                tensor = torch.as_tensor(chunk)
                require_shape("a chunk of acts", tensor, "n L d_in")
                yield self._next(tensor)
        for name, value in self._side.items():
            if len(value) != self._start:
                raise ShapeError(f"{name} has {len(value)} contexts, and acts has {self._start}")

    def _next(self, acts: Tensor, there: Tensor | None = None) -> _Rows:
        n, length, _ = acts.shape
        if acts.is_complex():
            raise ShapeError(f"acts holds {acts.dtype}; expected real numbers")
        columns = torch.arange(length).expand(n, length)
        contexts = torch.arange(self._start, self._start + n)[:, None].expand(n, length)
        valid = torch.ones(n, length, dtype=torch.bool) if there is None else there
        valid = valid & self._given("valid", valid).bool()
        rows = _Rows(
            acts.detach().cpu(),
            valid,
            self._given("positions", columns).long(),
            self._given("tokens", torch.zeros(n, length)).long(),
            self._given("documents", contexts).long(),
        )
        self._check(rows)
        self._start += n
        return rows

    def _given(self, name: str, default: Tensor) -> Tensor:
        """What was given for the contexts of this chunk, as [n, L]; padded where it is a list of unequal lengths."""
        if name not in self._side:
            return default
        n, length = default.shape
        some = self._side[name][self._start : self._start + n]
        if name == "documents" and len(some) and torch.as_tensor(some[0]).ndim == 0:
            return torch.as_tensor(some)[:, None].expand(n, length)
        rows = [torch.as_tensor(row) for row in some]
        if name != "valid" and any(bool((row != row.round()).any()) for row in rows if row.is_floating_point()):
            raise ShapeError(f"{name} holds fractions; expected whole numbers")
        if len(rows) != n or any(row.ndim != 1 or len(row) > length for row in rows):
            raise ShapeError(
                f"{name} has the shape {[*map(len, rows)]} for {n} contexts of up to {length} positions; expected as many "
                "values as acts has positions in each context"
            )
        return torch.stack([torch.cat([row, row.new_zeros(length - len(row))]) for row in rows])

    def _check(self, rows: _Rows) -> None:
        for name, low, high in (("positions", 0, _LONGEST), ("tokens", 0, _LARGEST), ("documents", 0, _LARGEST)):
            values = getattr(rows, name)[rows.valid]
            if len(values) and not low <= int(values.min()) <= int(values.max()) < high:
                raise ShapeError(f"{name} has {int(values.min())} to {int(values.max())}; expected {low} to {high - 1}")
        if "positions" in self._side:
            # Tokens that are not valid get places of their own, beyond all positions.
            length = rows.valid.shape[1]
            places = rows.positions.where(rows.valid, _LONGEST + torch.arange(length)).sort(dim=1).values
            if bool((repeated := (places[:, 1:] == places[:, :-1]).any(dim=1)).any()):
                context = self._start + int(repeated.nonzero()[0])
                raise ShapeError(f"context {context} has two tokens at one position; positions are unique in a context")
