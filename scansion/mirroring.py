"""Copies in the cache of files on object storage: what changed there is fetched, and what changed here is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from scansion.errors import DamagedError
from scansion.files import human_bytes
from scansion.progress import say
from scansion.records import read_object, write_json
from scansion.remote import Entry, Remote, local_copy, origin, url_of

CHECKPOINTS = "checkpoints"
"""The folder of a run that only training reads."""
_RECORD, _LOCK = ".remote.json", ".remote.lock"
# Files that say that others are whole are sent after these, so that who finds one finds what it names.
_LAST = ("state.json", "cfg.json", "final_info.json")


def fetched(place: str | Path, *, checkpoints: bool = True, to_write: bool = False) -> Path:
    """The folder itself, or the one in the cache that stands for a URL, with all that is new there since the last time.

    Files that are the same there as when they were last fetched or sent are left as they are here, changed or not. What was
    deleted there since is deleted here, unless it was changed here.

    Args:
        place: a folder, or its URL.
        checkpoints: also those of runs, which only training needs.
        to_write: make sure first that the storage takes what will be uploaded.

    Raises:
        ScansionError: the storage cannot be read or, if ``to_write``, written to.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    remote = Remote(url)
    if to_write:
        remote.require_writable()
    entries = remote.files()
    _forget_deleted(remote, entries)
    fetch(remote, {name: entries[name] for name in entries if checkpoints or CHECKPOINTS not in Path(name).parts})
    return local_copy(url)


def fetch(remote: Remote, entries: Mapping[str, Entry]) -> None:
    """Have current copies of these files of a folder on object storage in the cache."""
    folder = local_copy(remote.url)
    if not entries:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):
        records = _Records(folder)
        changed = {
            name: entry
            for name, entry in entries.items()
            if records.entry(name) != entry or not (folder / name).exists()
        }
        if changed:
            size = human_bytes(sum(entry.size for entry in changed.values()))
            say(f"fetching {len(changed):,} files ({size}) from {remote.url}")
        for name, entry in changed.items():
            remote.fetch(name, folder / name, entry)
            records.note(name, entry)


def _forget_deleted(remote: Remote, entries: Mapping[str, Entry]) -> None:
    """Delete the copies of files that are no longer there, so that what a user deletes there is made again."""
    folder = local_copy(remote.url)
    for record in sorted(folder.rglob(_RECORD), reverse=True):
        records, home = _Records(folder), record.parent.relative_to(folder)
        for name in records.names(str(home)):
            # Another process may have sent it after we listed the files: it is recorded once it is there, so ask again.
            if name not in entries and records.is_sent(name) and remote.entry(name) is None:
                (folder / name).unlink(missing_ok=True)
                records.forget(name)
        if record.parent != folder and [path.name for path in record.parent.iterdir()] == [_RECORD]:
            record.unlink()
            record.parent.rmdir()


def send(folder: Path, gone: Iterable[str] = ()) -> None:
    """Upload what is new in a folder that stands for a URL, and delete there what is gone; nothing for any other folder.

    Args:
        folder: in the cache.
        gone: names of folders in it that were deleted here; "." if it was emptied.
    """
    if (url := origin(folder)) is None:
        return
    remote = Remote(url)
    with FileLock(folder / _LOCK):
        records = _Records(folder)
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        visible = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
        for name in sorted(visible, key=lambda name: (Path(name).name in _LAST, name)):
            if not records.is_sent(name):
                records.note(name, remote.upload(folder / name, name))
        for each in gone:
            old = Remote(str(origin(folder / each)))
            old.delete(old.files())


class _Records:
    """What object storage had of each file when it was last fetched or sent, in a hidden file of the file's own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, dict[str, Any]] = {}

    def _of(self, name: str) -> tuple[dict[str, Any], Path]:
        path = self._folder / name
        if path.parent not in self._read:
            record = path.parent / _RECORD
            try:
                self._read[path.parent] = read_object(record) if record.exists() else {}
            except DamagedError:  # then all of it is fetched or sent again
                self._read[path.parent] = {}
        return self._read[path.parent], path

    def entry(self, name: str) -> Entry | None:
        """What the storage had."""
        record, path = self._of(name)
        return Entry(*record[path.name][:2]) if path.name in record else None

    def is_sent(self, name: str) -> bool:
        """Whether the file here has not changed since."""
        record, path = self._of(name)
        return path.name in record and path.exists() and record[path.name][2:] == _state(path)

    def names(self, home: str) -> list[str]:
        """The files of a folder in the folder that are recorded."""
        record, path = self._of(f"{home}/{_RECORD}")
        return [str((path.parent / name).relative_to(self._folder)) for name in record]

    def forget(self, name: str) -> None:
        """Remove the record of a file."""
        record, path = self._of(name)
        del record[path.name]
        write_json(path.parent / _RECORD, record)

    def note(self, name: str, entry: Entry) -> None:
        """Record that the storage has what is here."""
        record, path = self._of(name)
        record[path.name] = [entry.size, entry.version, *_state(path)]
        write_json(path.parent / _RECORD, record)


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
