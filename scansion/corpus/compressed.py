"""Local files as streams of bytes, whether they are compressed with gzip or Zstandard or not at all."""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from scansion.errors import CorpusError

COMPRESSED = (".gz", ".zst")


def plain_name(path: Path) -> str:
    """The file's name, in lower case and without the ending of its compression."""
    name = path.name.lower()
    return name.removesuffix(next((ending for ending in COMPRESSED if name.endswith(ending)), ""))


@contextmanager
def opened(path: Path) -> Generator[BinaryIO, None, None]:
    """The file's bytes, decompressed while they are read.

    Raises:
        CorpusError: the file cannot be read, or is damaged; also for errors inside the ``with`` block.
    """
    try:
        match path.suffix.lower():
            case ".gz":
                stream = cast(BinaryIO, gzip.GzipFile(path))
            case ".zst":
                stream = cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))
            case _:
                stream = path.open("rb")
        with stream:
            yield stream
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise unreadable(path, error) from error


@contextmanager
def seekable(path: Path) -> Generator[BinaryIO, None, None]:
    """:func:`opened` for formats that are not read from start to end: decompressed into a temporary file first."""
    with opened(path) as stream:
        if plain_name(path) == path.name.lower():
            yield stream
            return
        with tempfile.TemporaryFile() as whole:
            shutil.copyfileobj(stream, whole)
            whole.seek(0)
            yield cast(BinaryIO, whole)


def unreadable(path: Path, error: Exception) -> CorpusError:
    """The error that says in one line why a file cannot be read."""
    reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
    return CorpusError(f"{path} cannot be read ({reason}); check that it is complete and that you may read it")
