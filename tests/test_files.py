"""A file is there and whole, or it is not there; what a kill leaves is cleared away; the system's errors are one line."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from scansion.errors import ScansionError
from scansion.files import (
    atomic_file,
    atomic_folder,
    fingerprint,
    human_bytes,
    one_line_io_errors,
    remove_leftovers,
    require_free_space,
    require_writable,
    sha256_of,
)
from scansion.records import read_json, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_when_it_is_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert names(path) == ["old"]
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_files_and_folders_have_the_permissions_that_any_new_one_has(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.touch(mode=0o600)
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "inside").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/inside")}
    assert modes == {"file": 0o640, "folder": 0o750, "folder/inside": 0o640}


_KILLED = """
import os, signal, sys
from pathlib import Path
from scansion.files import atomic_file, atomic_folder
home = Path(sys.argv[1])
with atomic_folder(home / "folder") as folder, atomic_file(home / "file") as file:
    (folder / "inside").write_text("ne")
    file.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file_and_leftovers_that_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / ".hidden").write_text("the user's own")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "folder").exists()
    assert len(names(tmp_path)) == 4, "the kill came in the middle"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "file"]


@given(JSON)
def test_json_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_number_that_is_none(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", {"x": value})
    assert read_json(tmp_path / "value.json") == 1
    assert names(tmp_path) == ["value.json"]


def test_what_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": 1')
    with pytest.raises(ScansionError, match=r"cut\.json is not valid JSON .*; delete it and run the same command"):
        read_json(tmp_path / "cut.json")


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_fingerprints_name_values_whatever_the_order_of_keys(value: dict[str, object]) -> None:
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)
    assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)
    assert fingerprint({**value, "another": None} if "another" not in value else {}) != fingerprint(value)
    assert len(fingerprint(value)) == 32


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, example B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    with pytest.raises(ScansionError, match="File name too long"):
        require_writable(tmp_path / "a" / ("b" * 300))
    (tmp_path / "file").touch()
    with pytest.raises(ScansionError, match=r"cannot write in .*file/b: .*file is a file; choose another folder"):
        require_writable(tmp_path / "file" / "b")


def test_a_disk_that_is_too_small_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    require_free_space(tmp_path, 980_000, "the store")
    with pytest.raises(ScansionError, match=r"the store needs 2\.0 MB in .*, where 1\.0 MB are free; free some space"):
        require_free_space(tmp_path, 1_990_000, "the store")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "quota", "safetensors"],
)
def test_a_full_disk_is_one_line(error: Exception) -> None:
    message = "^saving: the disk is full; free some space and run the same command again$"
    with pytest.raises(ScansionError, match=message), one_line_io_errors("saving"):
        raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full_is_one_line() -> None:
    with (
        pytest.raises(ScansionError, match="the disk is full"),
        one_line_io_errors("saving"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x" * 100_000)


def test_other_errors_say_what_and_where_and_bugs_pass() -> None:
    message = r"^reading: No such file or directory \(/nowhere\)$"
    with pytest.raises(ScansionError, match=message), one_line_io_errors("reading"):
        Path("/nowhere").read_text()
    with pytest.raises(ScansionError, match=r"^reading: header too large$"), one_line_io_errors("reading"):
        raise SafetensorError("header too large\nand more")
    with pytest.raises(KeyError), one_line_io_errors("reading"):
        raise KeyError("a bug keeps its traceback")


def test_sizes_for_people() -> None:
    assert [human_bytes(n) for n in (0, 999, 1536, 98_373_789, 2.5e12, 7e18)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "98.4 MB",
        "2.5 TB",
        "7,000.0 PB",
    ]
