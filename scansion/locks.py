"""One writer per folder: a lock that names its holder, and that the system releases when the holder dies."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from scansion.errors import BusyError, ScansionError
from scansion.files import made_folder
from scansion.progress import say
from scansion.records import read_json, write_json

_LOCK, _HOLDER = ".lock", ".lock.json"
# Short waits, such as for a line added to notes, are not reported.
_SILENT_SECONDS = 2.0
# A holder writes its name just after it takes the lock, and removes it just before it releases it.
_NAMING_SECONDS = 1.0


@contextmanager
def only_writer(folder: Path, doing: str, *, wait: bool = False) -> Generator[None, None, None]:
    """Hold the right to write in ``folder`` while the block runs.

    Args:
        folder: created if it is missing. A hidden lock file is created there, and a hidden file that names the holder. After
            an error, the folder is removed again if it was created here and the block has left nothing in it.
        doing: what the block does, for example ``training``; other processes show it to their users.
        wait: instead of raising, report the other holder and wait for it.

    Raises:
        BusyError: another process holds the folder and ``wait`` is False.
    """
    with made_folder(folder):
        yield from _holding(folder, doing, wait)


def _holding(folder: Path, doing: str, wait: bool) -> Iterator[None]:
    is_new = not (folder / _LOCK).exists()
    lock = _acquired(folder, wait)
    try:
        write_json(
            folder / _HOLDER,
            {
                "doing": doing,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
                "command": " ".join(sys.argv)[:300],
            },
        )
        yield
    except BaseException:
        (folder / _HOLDER).unlink(missing_ok=True)
        if is_new and folder.is_dir() and [path.name for path in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()  # while it is held: whoever waits for it makes another
        raise
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _acquired(folder: Path, wait: bool) -> FileLock:
    lock = FileLock(folder / _LOCK)
    timeout: float = _SILENT_SECONDS if wait else 0
    while True:
        try:
            lock.acquire(timeout=timeout)
            return lock
        except Timeout as error:
            if not wait:
                raise BusyError(
                    f"{_holder(folder)}; wait for it to end, stop it, or choose another folder than {folder}"
                ) from error
            say(f"{_holder(folder)}; waiting for it to leave {folder}")
            timeout = -1
        except FileNotFoundError:  # the folder was new, and whoever held it has removed it after an error
            folder.mkdir(parents=True, exist_ok=True)


def _holder(folder: Path) -> str:
    """Who holds the folder, in one line."""
    until = time.monotonic() + _NAMING_SECONDS
    while True:
        try:
            holder = read_json(folder / _HOLDER)
            command = " ".join(str(holder["command"]).split())
            return (
                f"process {holder['pid']} on {holder['host']} is {holder['doing']} there since {holder['since']} "
                f"({command})"
            )
        except (OSError, ScansionError, KeyError, TypeError):
            if time.monotonic() > until:
                return "another process is writing there"
        time.sleep(0.02)
