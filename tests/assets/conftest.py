"""A tiny wheel that stands for the real ones, an empty cache, and a downloader that never leaves this machine."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scansion.assets import ASSETS, Asset

FILES = {
    "tiny/data/a.txt": b"first\n",
    "tiny/data/b.txt": b"second" * 500,
    "tiny/code.py": b"raise SystemExit('never unpacked')",
    "tiny-1.0.dist-info/LICENSE": b"MIT",
}


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return path


def asset_of(
    wheel: Path, name: str = "tiny", keep: tuple[str, ...] = ("tiny/data/*.txt", "*.dist-info/LICENSE")
) -> Asset:
    contents = wheel.read_bytes()
    sha256 = hashlib.sha256(contents).hexdigest()
    return Asset(name, "1.0", wheel.name, sha256, "MIT", "Two words.", keep, len(contents), 3100)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assets"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", FILES)


@pytest.fixture
def tiny(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The only asset in the manifest."""
    monkeypatch.setattr("scansion.assets.manifest.ASSETS", {"tiny": asset_of(wheel)})
    assert "tiny" not in ASSETS
    return asset_of(wheel)


@pytest.fixture
def downloads(tiny: Asset, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the download by a copy of the tiny wheel, and lists what was downloaded."""
    done: list[str] = []

    def copy(asset: Asset, folder: Path) -> Path:
        done.append(asset.name)
        return Path(shutil.copy(wheel, folder))

    monkeypatch.setattr("scansion.assets.fetching.download", copy)
    return done


@pytest.fixture
def pip(tiny: Asset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the pip process does: the files it leaves, its exit status and what it says on stderr."""

    class Result:
        returncode = 0
        stderr = ""

    def behave(leave: dict[str, bytes] | None = None, returncode: int = 0, stderr: str = "") -> None:
        def run(command: list[str], **_: object) -> Result:
            folder = Path(command[command.index("--dest") + 1])
            for name, contents in (leave or {}).items():
                (folder / name).write_bytes(contents)
            result = Result()
            result.returncode, result.stderr = returncode, stderr
            return result

        monkeypatch.setattr("scansion.assets.wheel.subprocess.run", run)

    return behave
