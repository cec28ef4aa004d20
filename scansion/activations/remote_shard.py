"""A shard on object storage: a file in the cache into which the positions that are needed are read, each checked by itself.

The activations of a position are contiguous in a shard. Next to each shard the storage has a small file with a digest of
every position's activations and one of all the rest, so that a part of the shard can be checked like the whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from scansion.activations.shard import Shard, ShardFacts, written_digest
from scansion.errors import DamagedError
from scansion.progress import say
from scansion.records import require_known_format
from scansion.remote import Entry, Remote

_ALL = slice(None)
_AT_ONCE = 16_000_000
"""Bytes of one request; those of a group of requests are in memory together."""
_REQUESTS = 4
_HELD = b"\1"
_REPAIR = "delete it there and run the harvest that made the store again, which uploads what is missing"


class ShardBlocks(BaseModel):
    """What ``positions-00000.json`` holds: how to check parts of a shard.

    Attributes:
        shard: digest of the shard, as in the manifest.
        n_contexts: that the shard holds.
        size: of its file.
        acts: where in the file the activations begin and end.
        positions: digest of each position's activations.
        rest: digest of all other bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = 1
    shard: str
    n_contexts: int
    size: int
    acts: tuple[int, int]
    positions: tuple[str, ...]
    rest: str

    @classmethod
    def of(cls, shard: Shard) -> ShardBlocks:
        """Those of a shard on disk, all of whose bytes are compared with its digest first.

        Raises:
            DamagedError: the shard is not what was written.
        """
        shard.verify()
        begin, end, size = shard.extent()
        contents = np.memmap(shard.path, np.uint8, "r")
        each = (end - begin) // shard.facts.length
        return cls(
            shard=shard.facts.digest,
            n_contexts=shard.n_contexts,
            size=size,
            acts=(begin, end),
            positions=tuple(_digest(contents[start : start + each]) for start in range(begin, end, each)),
            rest=_digest(contents[:begin], contents[end:]),
        )


def positions_file(shard: str) -> str:
    """The name of the file with the digests of a shard's positions."""
    return shard.replace("shard-", "positions-").replace(".safetensors", ".json")


class RemoteFiles:
    """The files of a store on object storage.

    Args:
        url: of the store.
        folder: in the cache, for what is read of it.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.place = url
        self.how_to_repair = "run the harvest that made the store again, which uploads what is missing"
        self.remote = Remote(url)
        self._folder = folder
        self.entries = self.remote.files()
        self.parts = folder
        """Where parts of shards go: a folder for each contents that the store has had."""

    def names(self) -> set[str]:
        """The files that there are."""
        return set(self.entries)

    def n_contexts(self, name: str) -> int:
        """How many contexts a shard holds."""
        return self.blocks(name).n_contexts

    def blocks(self, name: str) -> ShardBlocks:
        """How to check the parts of a shard.

        Raises:
            DamagedError: its file is missing or damaged.
        """
        file = positions_file(name)
        what = f"{self.place}/{file}"
        try:
            blocks = self.remote.json(file)
            return ShardBlocks.model_validate(require_known_format(blocks, what))
        except (ValidationError, DamagedError) as error:
            raise DamagedError(f"{what} is missing or damaged; {_REPAIR}") from error

    def bring(self, folder: Path, *names: str) -> None:
        """Download some of the files to a folder, if they are in the storage and not there yet."""
        for name in names:
            if name in self.entries and not (folder / name).exists():
                self.remote.fetch(name, folder / name, self.entries[name])

    def shard(self, name: str, facts: ShardFacts) -> Shard:
        """A shard: of a whole file in the cache, as a harvest leaves there, or read from the storage by parts."""
        path = self._folder / name
        if path.exists():
            try:
                if written_digest(path) == facts.digest:
                    return Shard(path, facts)
            except DamagedError:
                say(f"{path} is damaged; reading {self.place}/{name} instead")
        return RemoteShard(self.parts / name, facts, name, self)


class RemoteShard(Shard):
    """A shard whose parts are read from object storage when they are first needed.

    Several processes may use the same file: whoever needs a position reads and checks it, writes its bytes and then a mark
    into the file beside it. What is marked is compared with its digest again when a process first uses it.

    Args:
        path: of the file in the cache; it has the size of the shard, and holes where nothing was read yet.
        facts: what the shard must be.
        name: of the shard in the storage.
        files: the store's.
    """

    _filled_later = True

    def __init__(self, path: Path, facts: ShardFacts, name: str, files: RemoteFiles) -> None:
        super().__init__(path, facts)
        self._name = name
        self._files = files
        self._url = f"{files.place}/{name}"
        self._marks = path.with_suffix(".marks")
        # Of each position, and of all the rest of the file: whether this process has compared it with its digest.
        self._checked = np.zeros(facts.length + 1, bool)
        self._lock = threading.Lock()

    def rows(self, positions: np.ndarray, contexts: np.ndarray) -> Float[Tensor, "m d_in"]:
        """See :meth:`Shard.rows`; all contexts of these positions are read."""
        self._hold(positions)
        return super().rows(positions, contexts)

    def contexts(self, start: int, stop: int, positions: slice = _ALL) -> Float[Tensor, "L n d_in"]:
        """See :meth:`Shard.contexts`; all contexts of these positions are read."""
        self._hold(np.arange(self.facts.length)[positions])
        return super().contexts(start, stop, positions)

    def verify(self) -> None:
        """Read every byte from the storage again, and compare them with the digest of the whole.

        Raises:
            DamagedError: the shard is not what was written.
        """
        self._marks.unlink(missing_ok=True)
        self._checked[:] = False
        self.__dict__.pop("_whole", None)
        self._hold(np.arange(self.facts.length))
        try:
            super().verify()
        except DamagedError as error:
            raise self._with_advice(error) from error

    def check_size(self) -> None:
        """Compare the size in the storage with what it should be.

        Raises:
            DamagedError: it was cut short, or the file with its digests is missing or of another shard.
        """
        self._blocks  # noqa: B018 - which checks them

    def trust(self) -> None:
        """Nothing: what this process reads is compared with its digests."""

    def _read(self, compare: bool = False) -> dict[str, Tensor]:
        self._hold(np.array([self.facts.length]))
        return super()._read(compare)

    def _with_advice(self, error: DamagedError) -> DamagedError:
        what = str(error).replace(str(self.path), self._url)
        return DamagedError(what if _REPAIR in what else f"{what}; {_REPAIR}")

    @cached_property
    def _blocks(self) -> ShardBlocks:
        blocks = self._files.blocks(self._name)
        begin, end = blocks.acts
        of_acts = (
            self.facts.length * self.facts.n_contexts * self.facts.d_in * (4 if self.facts.dtype == "float32" else 2)
        )
        if blocks.shard != self.facts.digest or len(blocks.positions) != self.facts.length or end - begin != of_acts:
            raise DamagedError(
                f"{self._files.place}/{positions_file(self._name)} is of another shard than the manifest's; {_REPAIR}"
            )
        entry = self._files.entries.get(self._name, Entry(0, ""))
        if entry.size != blocks.size:
            raise DamagedError(f"{self._url} is damaged: it was cut short or grew ({entry.size:,} bytes); {_REPAIR}")
        return blocks

    def _spans(self, part: int) -> list[tuple[int, int]]:
        """Where in the file a position's activations are, or all the rest."""
        begin, end = self._blocks.acts
        if part == self.facts.length:
            return [(0, begin), (end, self._blocks.size)]
        each = (end - begin) // self.facts.length
        return [(begin + part * each, begin + (part + 1) * each)]

    def _expected(self, part: int) -> str:
        return self._blocks.rest if part == self.facts.length else self._blocks.positions[part]

    def _hold(self, parts: np.ndarray) -> None:
        """Have positions in the file, checked; number L is all the rest."""
        if self._checked[parts].all():
            return
        with self._lock:
            wanted: list[int] = np.unique(parts[~self._checked[parts]]).tolist()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _opened(self.path, self._blocks.size) as file, _opened(self._marks, len(self._checked)) as marks:
                held = [part for part in wanted if os.pread(marks, 1, part) == _HELD]
                intact = {part for part in held if self._is_intact(file, part)}
                if len(intact) < len(held):
                    say(f"{self.path} is not what {self._url} holds now; reading it again")
                self._checked[list(intact)] = True
                for group in _groups([part for part in wanted if part not in intact], self._spans):
                    self._fetch(group, file, marks)

    def _is_intact(self, file: int, part: int) -> bool:
        contents = [os.pread(file, end - start, start) for start, end in self._spans(part)]
        return _digest(*contents) == self._expected(part)

    def _fetch(self, parts: Sequence[int], file: int, marks: int) -> None:
        spans = _joined([span for part in parts for span in self._spans(part)])
        for is_last in (False, True):  # a byte that changed on the way is right the second time
            came = dict(zip(spans, self._files.remote.ranges(self._name, spans), strict=True))
            damaged = [part for part in parts if not self._is_as_expected(part, came)]
            if not damaged:
                break
            if is_last:
                where = "outside its activations" if self.facts.length in damaged else f"at position {damaged[0]}"
                raise DamagedError(f"{self._url} is damaged {where}: its bytes do not match their digest; {_REPAIR}")
        for (start, _), contents in came.items():
            _write(file, contents, start)
        os.fsync(file)  # before the marks, which say that the bytes are there
        for part in parts:
            _write(marks, _HELD, part)
        self._checked[list(parts)] = True

    def _is_as_expected(self, part: int, came: dict[tuple[int, int], bytes]) -> bool:
        contents: list[memoryview] = []
        for start, end in self._spans(part):
            first, last = next(span for span in came if span[0] <= start and end <= span[1])
            contents.append(memoryview(came[first, last])[start - first : end - first])
        return _digest(*contents) == self._expected(part)


class _opened:
    """A descriptor of a file that is made to have a size; whoever else makes it at the same time makes the same."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        if os.fstat(self._descriptor).st_size != self._size:
            os.ftruncate(self._descriptor, self._size)
        return self._descriptor

    def __exit__(self, *_: Any) -> None:
        os.close(self._descriptor)


def _write(file: int, contents: bytes, at: int) -> None:
    rest = memoryview(contents)
    while rest:
        written = os.pwrite(file, rest, at)
        rest, at = rest[written:], at + written


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, those that follow one another as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and joined[-1][1] == start and end - joined[-1][0] <= _AT_ONCE:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _groups(parts: Sequence[int], spans: Any) -> Iterator[list[int]]:
    """The parts in groups that are read together."""
    group, size = list[int](), 0
    for part in parts:
        group.append(part)
        size += sum(end - start for start, end in spans(part))
        if size >= _REQUESTS * _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _digest(*contents: Any) -> str:
    digest = xxhash.xxh3_128()
    for each in contents:
        digest.update(each)
    return digest.hexdigest()
