"""Parts of a shard that is being computed, written every 20 seconds, so that an interruption loses no more than that.

A part holds the activations of successive batches. Once the shard is written its parts are deleted: how often a harvest was
interrupted changes nothing in the finished store.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from torch import Tensor

from scansion.errors import DamagedError
from scansion.files import atomic_file
from scansion.progress import say
from scansion.tensor_file import load_tensors, save_tensors

SECONDS = 20.0
PREFIX = "part-"


class Parts:
    """The parts of one shard: ``part-SHARD-FIRST-END.safetensors``, by the batches that they hold.

    Args:
        shard: the file that the shard will be.
        of: identifies the shard and how its batches are formed.
    """

    def __init__(self, shard: Path, of: str) -> None:
        self._shard = shard
        self._of = of
        self._written = time.monotonic()

    def read(self) -> dict[int, Tensor]:
        """The activations [m, d_in] of each part, in order from the first batch on, by the number of the batch after it.

        A part that is damaged, or of batches formed in another way, is left out with all that follow it.
        """
        parts: dict[int, Tensor] = {}
        reached = 0
        for first, end, path in self._paths():
            if first != reached:
                continue
            try:
                parts[end] = load_tensors(path, of=f"{self._of} {first} {end}")["acts"]
            except (DamagedError, KeyError) as error:
                say(f"{error}; computing it again")
                break
            reached = end
        return parts

    @property
    def is_due(self) -> bool:
        """Whether the last part was begun :data:`SECONDS` ago."""
        return time.monotonic() - self._written >= SECONDS

    def write(self, first: int, end: int, acts: Tensor) -> None:
        """Write the activations of the batches ``first`` to ``end`` (exclusive)."""
        with atomic_file(self._shard.with_name(f"{self._prefix}{first:06d}-{end:06d}.safetensors")) as temporary:
            save_tensors(temporary, {"acts": acts}, of=f"{self._of} {first} {end}")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete them all."""
        for _, _, path in self._paths():
            path.unlink(missing_ok=True)

    @property
    def _prefix(self) -> str:
        return f"{PREFIX}{self._shard.stem.rpartition('-')[2]}-"

    def _paths(self) -> list[tuple[int, int, Path]]:
        """First batch, one past the last, and file of each part, sorted."""
        names = re.compile(rf"{self._prefix}(\d+)-(\d+)\.safetensors")
        matches = ((names.fullmatch(path.name), path) for path in self._shard.parent.glob(f"{self._prefix}*"))
        return sorted((int(match[1]), int(match[2]), path) for match, path in matches if match)
