"""Token activations kept on disk between evaluations: whole or not at all, checked when read, and never above a limit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from scansion.assets import cache_dir
from scansion.errors import DamagedError
from scansion.files import atomic_file, free_bytes, human_bytes
from scansion.progress import say
from scansion.tensor_file import load_tensors, save_tensors

_SUFFIX = ".safetensors"
_SHARE_OF_FREE = 0.9
_HEADER_BYTES = 512


DEFAULT_GB = 8.0


def default_folder() -> Path:
    """Where probing activations are cached."""
    return cache_dir() / "probing"


class ActivationCache:
    """Named sets of tensors, one file each.

    When the cache is full, sets that this object has not used are deleted, the least recently used first. If that does not
    free enough space, the new set is not cached.

    Args:
        folder: created when something is first cached.
        limit: most bytes that all sets together may take; 0 caches nothing. At most nine tenths of the free disk are used.
    """

    @classmethod
    def of_gigabytes(cls, limit: float = DEFAULT_GB) -> ActivationCache:
        """The user's own, in :func:`default_folder`."""
        return cls(default_folder(), int(limit * 1e9))

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._touched: set[str] = set()
        self._said: set[str] = set()

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors kept under ``key``; None if there are none, or if their file is damaged, which is then removed."""
        path = self.folder / f"{key}{_SUFFIX}"
        if self.limit == 0 or not path.exists():
            return None
        try:
            tensors = load_tensors(path, of=key)
        except DamagedError as error:
            say(f"{error}; computing its activations again")
            path.unlink(missing_ok=True)
            return None
        self._touched.add(path.name)
        with suppress(FileNotFoundError):  # another process has just made room
            os.utime(path)
        return tensors

    def keep(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep contiguous tensors on the CPU under ``key``, if there is room."""
        size = _HEADER_BYTES + sum(tensor.nbytes for tensor in tensors.values())
        if self.limit == 0:
            return
        if not self._make_room(size):
            self._say_once(
                f"no room for more probing activations in {self.folder} (limit {human_bytes(self.limit)}): "
                "the language model will run again for those that are left out; raise cache_gb or free some space"
            )
            return
        path = self.folder / f"{key}{_SUFFIX}"
        with atomic_file(path) as temporary:
            save_tensors(temporary, tensors, of=key)
        self._touched.add(path.name)

    def announce(self, what: str, size: int) -> None:
        """Say how much a set of entries takes, once."""
        if self.limit:
            self._say_once(f"{what}: up to {human_bytes(size)} of token activations are kept in {self.folder}")

    def _make_room(self, size: int) -> bool:
        entries: list[tuple[Path, os.stat_result]] = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                entries.append((path, path.stat()))
        used = sum(stat.st_size for _, stat in entries)
        free = free_bytes(self.folder)
        room = min(self.limit - used, int(_SHARE_OF_FREE * free))
        removable = sorted((s.st_mtime, s.st_size, p) for p, s in entries if p.name not in self._touched)
        if room + sum(length for _, length, _ in removable) < size:
            return False
        for _, length, path in removable:
            if room >= size:
                break
            path.unlink(missing_ok=True)
            room += length
        return True

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)
