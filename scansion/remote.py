"""Object storage: the URLs that fsspec reads (``s3://``, ``gs://``, ...), and the folder in the cache that stands for each."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from scansion.assets import cache_dir
from scansion.errors import ConfigError, ScansionError
from scansion.files import atomic_file, require_writable, url_of
from scansion.records import parse_json, unsealed_values

TRIES = 5
"""How often a request is made before it counts as failed."""
FIRST_WAIT = 0.5
"""Seconds before the second try; each later wait is twice as long."""

_FOLDER = "remote"
_PROBE = ".write-check-"
"""How the names of objects begin that are uploaded to see whether that is possible."""
# How each client is told to make a request once: tries are counted here, and not multiplied.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 0}}},
    "file": {"auto_mkdir": True},
}
_EXTRAS = {"s3": "scansion[s3]", "s3a": "scansion[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
# What another try would not change.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_BUGS = (TypeError, AttributeError, NameError, AssertionError)

T = TypeVar("T")


def local_copy(place: str | Path) -> Path:
    """The folder in the cache that stands for a URL; any other place as it is."""
    url = url_of(place)
    if url is None:
        return Path(place)
    scheme, rest = url.split("://")
    return cache_dir() / _FOLDER / scheme / rest.strip("/")


def origin(folder: Path) -> str | None:
    """The URL that a folder in the cache stands for; None for any other folder."""
    home = (cache_dir() / _FOLDER).absolute()
    if not folder.absolute().is_relative_to(home):
        return None
    parts = folder.absolute().relative_to(home).parts
    return url_of(f"{parts[0]}://{'/'.join(parts[1:])}") if len(parts) > 1 else None


def named(folder: Path) -> str:
    """What messages call a folder or a file: its URL if it stands for one."""
    return origin(folder) or str(folder)


def with_urls(message: str) -> str:
    """The message with the URL of every copy in the cache in place of its path."""
    return re.sub(rf"{_home()}/([^/\s]+)/", lambda match: f"{match[1]}://" + "/" * (match[1] == "file"), message)


def copy_in(message: str) -> str | None:
    """The first copy in the cache whose path is in the message; None if there is none."""
    found = re.search(rf"{_home()}/[^\s,;]*[^\s,;:.)]", message)
    return found[0] if found else None


def _home() -> str:
    return re.escape(str((cache_dir() / _FOLDER).absolute()))


@dataclass(frozen=True)
class Entry:
    """What a listing says of an object.

    Attributes:
        size: in bytes.
        version: changes when the object does, as its ETag; empty if the storage has nothing of the kind.
    """

    size: int
    version: str

    @classmethod
    def of(cls, info: dict[str, Any]) -> Entry:
        """That of a file, as fsspec describes it."""
        names = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
        return cls(int(info["size"]), next((str(info[name]) for name in names if info.get(name) is not None), ""))


class Remote:
    """A folder of object storage. Every request is tried several times, at growing intervals.

    Args:
        url: of the folder.

    Raises:
        ConfigError: there is no client for the URL; says which package to install.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # takes a moment, and local folders do not need it

        self.url = url
        scheme = url.split("://")[0]
        options = _OPTIONS.get(scheme, {})
        try:
            # Listings are not cached: other machines write there too.
            filesystem = fsspec.filesystem(scheme, use_listings_cache=False, **options)
        except ImportError as error:
            package = _EXTRAS.get(scheme, f"the fsspec client for {scheme}")
            raise ConfigError(f"{url} needs a package that is not installed: pip install '{package}'") from error
        except ValueError as error:
            raise ConfigError(f"{url} cannot be read: {' '.join(str(error).split())}") from error
        self._fs: Any = filesystem
        if scheme == "s3":
            self._fs.retries = 1
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def files(self) -> dict[str, Entry]:
        """Every object in the folder and below, by its name in it; empty if there is none."""
        try:
            found = self._try("list", lambda: self._fs.find(self._root, detail=True))
        except FileNotFoundError:
            return {}
        entries = cast("dict[str, dict[str, Any]]", found)
        return {
            path.removeprefix(self._root).lstrip("/"): Entry.of(info)
            for path, info in sorted(entries.items())
            if info.get("type") == "file" and path.startswith(f"{self._root}/") and _PROBE not in path
        }

    def matches(self, pattern: str) -> dict[str, Entry]:
        """The objects whose names in the folder match a pattern such as ``*.jsonl`` or ``**/*.txt``; as :meth:`files`."""
        found = self._try("list", lambda: self._fs.glob(self._path(pattern), detail=True))
        if not found:  # also if there is no bucket, which only a listing says
            with suppress(FileNotFoundError):
                self._try("list", lambda: self._fs.ls(self._root))
        entries = cast("dict[str, dict[str, Any]]", found)
        return {
            path.removeprefix(self._root).lstrip("/"): Entry.of(info)
            for path, info in sorted(entries.items())
            if info.get("type") == "file"
        }

    def entry(self, name: str = "") -> Entry | None:
        """What there is of one object; None if it is not there, or is a folder."""
        try:
            info = self._try("look at", lambda: self._fs.info(self._path(name)), name)
        except FileNotFoundError:
            return None
        return Entry.of(info) if info.get("type") == "file" else None

    def json(self, name: str) -> Any:
        """What :func:`scansion.records.write_json` wrote; None if there is no such object.

        Raises:
            DamagedError: it is something else.
        """
        try:
            contents: bytes = self._try("read", lambda: self._fs.cat_file(self._path(name)), name)
        except FileNotFoundError:
            return None
        what = f"{self.url}/{name}"
        return unsealed_values(parse_json(contents.decode("utf-8", "replace"), what), what)

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of an object from each first to each last (exclusive), read at the same time."""
        starts, ends = [start for start, _ in spans], [end for _, end in spans]

        def read() -> list[bytes]:
            found: list[bytes] = self._fs.cat_ranges([self._path(name)] * len(spans), starts, ends, on_error="raise")
            for contents, (start, end) in zip(found, spans, strict=True):
                if len(contents) != end - start:
                    raise OSError(f"{len(contents)} bytes came instead of {end - start}")
            return found

        return self._try("read", read, name)

    def fetch(self, name: str, path: Path, entry: Entry) -> None:
        """Download an object to a file, atomically."""
        with atomic_file(path) as temporary:

            def get() -> None:
                self._fs.get_file(self._path(name), str(temporary))
                if temporary.stat().st_size != entry.size:
                    raise OSError(f"{temporary.stat().st_size} bytes came instead of {entry.size}")

            self._try("download", get, name)

    def require_writable(self) -> None:
        """Upload an empty object and delete it again, so that what is wrong is known before there is anything to upload.

        Raises:
            ScansionError: the storage cannot be reached, has no such bucket, or does not take objects.
        """
        if self.url.startswith("file:"):
            require_writable(Path(self._root))
            return
        name = f"{_PROBE}{uuid.uuid4().hex[:12]}"
        self._try("write in", lambda: self._fs.pipe_file(self._path(name), b""))
        with suppress(ScansionError):  # who may not delete may still write
            self.delete([name])

    def upload(self, path: Path, name: str) -> Entry:
        """Upload a file; returns what is there then."""

        def put() -> Entry:
            self._fs.put_file(str(path), self._path(name))
            entry = Entry.of(self._fs.info(self._path(name)))
            if entry.size != path.stat().st_size:
                raise OSError(f"{entry.size} bytes arrived of {path.stat().st_size}")
            return entry

        return self._try("upload", put, name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects that are there."""
        for name in names:
            try:
                self._try("delete", lambda name=name: self._fs.rm_file(self._path(name)), name)
            except FileNotFoundError:
                continue

    def _try(self, doing: str, request: Callable[[], T], name: str = "") -> T:
        """The answer to a request.

        Raises:
            FileNotFoundError: there is no such object; callers say what that means.
            ScansionError: anything else, in one line.
        """
        what = f"{self.url}/{name}" if name else self.url
        for number in range(1, TRIES + 1):
            try:
                return request()
            except (ScansionError, *_BUGS):
                raise
            except Exception as error:  # clients raise what their libraries do
                reason = " ".join(str(error).split()) or type(error).__name__
                if isinstance(error, FileNotFoundError):
                    if "specified bucket" in reason:
                        raise ScansionError(
                            f"cannot {doing} {what}: {reason}; create the bucket, or correct the URL"
                        ) from error
                    if doing not in ("upload", "download", "write in"):
                        raise
                if type(error).__name__ in _NO_CREDENTIALS:
                    raise ScansionError(
                        f"cannot {doing} {what}: {reason}; give credentials as the storage's own tools take them, for s3 "
                        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile (docs/object_storage.md)"
                    ) from error
                if isinstance(error, _LASTING):
                    hint = (
                        "check the credentials and their rights"
                        if isinstance(error, PermissionError)
                        else "check the URL"
                    )
                    raise ScansionError(f"cannot {doing} {what}: {reason}; {hint}") from error
                if number == TRIES:
                    raise ScansionError(
                        f"cannot {doing} {what}, tried {TRIES} times: {reason}; check the network and the storage's address, "
                        "and run the same command again to resume"
                    ) from error
                time.sleep(FIRST_WAIT * 2 ** (number - 1))
        raise AssertionError  # the last try has returned or raised
