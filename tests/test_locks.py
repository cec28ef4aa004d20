"""A folder has one writer at a time: others wait or are refused, and learn who it is; a dead holder holds nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scansion.errors import BusyError
from scansion.locks import only_writer

HOLD = """
import sys, time
from pathlib import Path
from scansion.locks import only_writer
with only_writer(Path(sys.argv[1]), "holding on"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the folder, once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    first = holder(tmp_path, 60)
    with pytest.raises(BusyError) as refused, only_writer(tmp_path, "training"):
        pass
    message = str(refused.value)
    assert f"process {first.pid} on " in message and "is holding on there since 20" in message
    assert str(tmp_path) in message and "\n" not in message
    first.kill()
    first.wait()
    with only_writer(tmp_path, "training"):  # what a killed process leaves behind stops nobody
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_writer_that_waits_says_whom_for(tmp_path: Path, capsys) -> None:
    first, began = holder(tmp_path, 4), time.monotonic()
    with only_writer(tmp_path, "harvesting", wait=True):
        assert time.monotonic() - began > 2
    assert first.wait() == 0
    said = capsys.readouterr().err
    assert f"process {first.pid} on " in said and f"waiting for it to leave {tmp_path}" in said


def test_a_holder_that_has_just_taken_the_lock_is_waited_for_until_it_has_written_its_name(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    first = holder(tmp_path, 60)
    (tmp_path / ".lock.json").rename(tmp_path / "away/.lock.json")  # as between taking the lock and writing the name
    naming = threading.Timer(0.3, (tmp_path / "away/.lock.json").rename, [tmp_path / ".lock.json"])
    naming.start()
    with pytest.raises(BusyError, match=f"process {first.pid} on .* is holding on there"), only_writer(tmp_path, "x"):
        pass
    naming.join()
    first.kill()
    first.wait()


def test_after_an_error_a_new_folder_is_gone_and_one_with_something_in_it_is_kept(tmp_path: Path) -> None:
    def refused(folder: Path, *written: str) -> None:
        with pytest.raises(ZeroDivisionError), only_writer(folder, "training"):
            for name in written:
                (folder / name).write_text("something")
            raise ZeroDivisionError

    refused(tmp_path / "runs/new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    refused(tmp_path / "own")
    assert [path.name for path in tmp_path.rglob("*")] == ["own"]
    refused(tmp_path / "runs/new", "metrics.jsonl")
    assert {path.name for path in (tmp_path / "runs/new").iterdir()} == {".lock", "metrics.jsonl"}


def test_a_writer_that_waits_for_one_that_is_refused_gets_a_folder(tmp_path: Path) -> None:
    folder, held = tmp_path / "runs/new", threading.Event()

    def refused() -> None:
        with contextlib.suppress(ZeroDivisionError), only_writer(folder, "training"):
            held.set()
            time.sleep(1)
            raise ZeroDivisionError

    first = threading.Thread(target=refused)
    first.start()
    held.wait()
    with only_writer(folder, "training", wait=True):
        (folder / "config.yaml").write_text("")
    first.join()
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml"}
