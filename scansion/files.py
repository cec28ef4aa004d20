"""Files that are either complete or not there: atomic writes, fingerprints, and checks made before expensive work."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import xxhash
from safetensors import SafetensorError

from scansion.errors import ConfigError, ScansionError

TEMPORARY_PREFIX = ".partial-"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def url_of(place: str | Path) -> str | None:
    """The URL that was given as a place, also if it was made a path since, which has one slash; None for a local path."""
    match = _URL.fullmatch(str(place))
    if match is None:
        return None
    scheme, rest = match[1].lower(), match[2]
    if not rest.strip("/"):
        raise ConfigError(f"{place} names no place: write it like {scheme}://bucket/folder")
    if any(part in (".", "..") for part in rest.split("/")):
        raise ConfigError(f"{place} is not a URL that can be used: leave out the parts '.' and '..'")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest.strip('/')}"


def require_on_disk(folder: Path) -> None:
    """Raise :class:`ConfigError` if a URL was given as a folder that only a disk can have."""
    if url := url_of(folder):
        raise ConfigError(
            f"this takes a folder or a file on disk, not {url}; docs/object_storage.md says what can be on object storage"
        )


def _finish(path: Path) -> None:
    """Give a new file the permissions any new file has (some writers make it private), and flush it to disk."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced by the home folder of the user.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"there is no user whose home folder is {Path(path).parts[0]!r}, in {str(path)!r}") from error


@contextmanager
def one_line_io_errors(doing: str) -> Generator[None, None, None]:
    """Turn the operating system's errors into a :class:`ScansionError` that says what was being done."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the system's errors as text, without their number.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):
            raise ScansionError(f"{doing}: the disk is full; free some space and run the same command again") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise ScansionError(f"{doing}: {reason}{where}") from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise ConfigError(f"{doing}: a path holds a null character") from error


@contextmanager
def made_folder(folder: Path) -> Generator[None, None, None]:
    """Create ``folder`` and its parents. After an error in the block, those created here are removed again if they are empty.

    Raises:
        ConfigError: it is a URL, which would name a folder such as ``s3:`` in the working folder.
    """
    require_on_disk(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # something is in it
                break
        raise


@contextmanager
def atomic_file(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path in ``path``'s folder. On success it is fsynced and renamed to ``path``, else removed."""
    # Processes of several machines may write the same file on a shared disk.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-{path.name}")
    with made_folder(path.parent):
        try:
            yield temporary
            _finish(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary folder next to ``path``. On success its files are fsynced and it is renamed to ``path``.

    A folder that already has that name is replaced.
    """
    with made_folder(path.parent):
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent))
        try:
            yield temporary
            for file in [temporary, *temporary.rglob("*")]:
                _finish(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted :func:`atomic_file` or :func:`atomic_folder` left behind in ``folder``."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def fingerprint(value: Any) -> str:
    """A 32-digit hexadecimal name for any JSON value; equal values (whatever the order of keys) get equal names."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(canonical.encode("ascii"))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    if not isinstance(value, dict):
        return {prefix: value}
    nested = cast(dict[str, Any], value)
    parts = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in nested.items()]
    return {name: item for part in parts for name, item in part.items()}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Raise unless files can be written in ``folder``, which need not exist; creates nothing."""
    require_on_disk(folder)
    if str(folder).encode("utf-8", "replace").decode() != str(folder):
        raise ScansionError(f"the path of {folder} is not UTF-8 text; choose another folder")
    if blocking := next((path for path in (folder, *folder.parents) if path.is_file()), None):
        raise ScansionError(f"cannot write in {folder}: {blocking} is a file; choose another folder")
    try:
        above = _existing(folder)
        with tempfile.TemporaryFile(dir=above):
            pass
        for part in folder.absolute().relative_to(above).parts:
            with suppress(FileNotFoundError):  # what is raised instead if the name is too long for the disk
                (above / part).lstat()
    except OSError as error:
        raise ScansionError(f"cannot write in {folder}: {error.strerror}; choose another folder") from error


def _existing(folder: Path) -> Path:
    """The folder itself if it exists, else the nearest one above it that does."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise unless ``needed`` bytes (and 2% more) are free on the disk of ``folder``, which need not exist."""
    free = free_bytes(folder)
    if needed * 1.02 > free:
        raise ScansionError(
            f"{purpose} needs {human_bytes(needed)} in {folder}, where {human_bytes(free)} are free; "
            "free some space, ask for fewer tokens, or choose another folder"
        )


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of ``folder``, which need not exist."""
    return shutil.disk_usage(_existing(folder)).free


def human_bytes(count: float) -> str:
    """``1536`` -> ``'1.5 kB'``, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
