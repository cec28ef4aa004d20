"""The cache of unpacked assets: where it is, which assets are in it, and whether their files are unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from scansion.assets.manifest import Asset, find_assets
from scansion.errors import AssetError, ScansionError
from scansion.files import expanded, sha256_of
from scansion.progress import progress
from scansion.records import read_json

Status = Literal["missing", "present", "damaged"]
RECORD = "asset.json"


def cache_dir() -> Path:
    """``$SCANSION_CACHE``, else ``$XDG_CACHE_HOME/scansion``, else ``~/.cache/scansion``."""
    if chosen := os.environ.get("SCANSION_CACHE"):
        return expanded(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return expanded(xdg) / "scansion"
    return Path.home() / ".cache" / "scansion"


def asset_folder(asset: Asset) -> Path:
    """The folder that ``asset`` is unpacked into; it may not exist yet."""
    return cache_dir() / "assets" / f"{asset.name}-{asset.version}"


def status(name: str) -> Status:
    """``missing``, ``present`` or ``damaged``, judged by names and sizes of files; :func:`verify` also reads them.

    Raises:
        AssetError: no asset has that name.
    """
    (asset,) = find_assets([name])
    if not asset_folder(asset).exists():
        return "missing"
    return "damaged" if _differences(asset) else "present"


def asset_path(name: str) -> Path:
    """The folder of a fetched asset; inside it, files keep the paths they have in the wheel.

    Raises:
        AssetError: no asset has that name, it was not fetched, or files of it are missing.
    """
    state = status(name)
    (asset,) = find_assets([name])
    if state != "present":
        raise AssetError(
            f"the asset {asset} is {state} in {cache_dir()}; run `scansion assets fetch {name}` "
            "(or set SCANSION_CACHE to a folder that has it)"
        )
    return asset_folder(asset)


def verify(names: Iterable[str] | None = None) -> dict[str, int]:
    """Hash every file of the assets again and return how many files each has.

    Args:
        names: assets to verify, which must have been fetched; None verifies all that were fetched.

    Raises:
        AssetError: an asset is missing, or files were changed, lost or added; the message names them.
    """
    assets = find_assets(names)
    if names is None:
        assets = [asset for asset in assets if asset_folder(asset).exists()]
    counts = {}
    for asset in assets:
        if not asset_folder(asset).exists():
            raise AssetError(f"the asset {asset} is not in {cache_dir()}; run `scansion assets fetch {asset.name}`")
        if wrong := _differences(asset) or _changed_files(asset):
            shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise AssetError(
                f"the asset {asset} is not what was fetched: {shown}; "
                f"delete {asset_folder(asset)} and run `scansion assets fetch {asset.name}`"
            )
        counts[asset.name] = len(_recorded_files(asset))
    return counts


def _recorded_files(asset: Asset) -> dict[str, dict[str, Any]]:
    record = read_json(asset_folder(asset) / RECORD)
    if record["sha256"] != asset.sha256:
        raise AssetError(f"{asset_folder(asset)} was unpacked from another wheel")
    return record["files"]


def _differences(asset: Asset) -> list[str]:
    """What is wrong with an asset's files, judged by names and sizes only; empty if nothing is."""
    folder = asset_folder(asset)
    try:
        recorded = _recorded_files(asset)
    except (ScansionError, OSError, KeyError, TypeError):
        return [f"{RECORD} is unreadable or of another wheel"]
    # Hidden files come from file managers and network file systems; nothing here reads them.
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path != folder / RECORD and not path.name.startswith(".")
    }
    return [
        *(f"{name} is gone" for name in recorded if name not in sizes),
        *(f"{name} was added" for name in sizes if name not in recorded),
        *(
            f"{name} has another size"
            for name in recorded
            if sizes.get(name, recorded[name]["size"]) != recorded[name]["size"]
        ),
    ]


def _changed_files(asset: Asset) -> list[str]:
    recorded = _recorded_files(asset)
    changed = []
    with progress(f"verify {asset.name}", sum(file["size"] for file in recorded.values()), "bytes") as advance:
        for name, file in recorded.items():
            if sha256_of(asset_folder(asset) / name) != file["sha256"]:
                changed.append(f"{name} has another hash")
            advance(file["size"])
    return changed
