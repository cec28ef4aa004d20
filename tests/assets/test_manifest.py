"""The manifest pins every asset completely, and importing the assets is cheap."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from scansion.assets import ASSETS, status
from scansion.errors import AssetError


@pytest.mark.parametrize("asset", ASSETS.values(), ids=str)
def test_every_asset_is_pinned(asset) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
    assert asset.wheel.startswith(f"{asset.name.replace('-', '_')}-{asset.version}-")
    assert asset.licence
    assert asset.what.endswith(".")
    assert any("LICENSE" in pattern for pattern in asset.keep)
    assert min(asset.wheel_bytes, asset.kept_bytes) > 1_000_000


def test_an_unknown_name_is_answered_with_the_known_ones(cache) -> None:
    with pytest.raises(AssetError, match=r"'nope'.*sotu"):
        status("nope")


def test_importing_the_assets_imports_nothing_heavy() -> None:
    code = "import sys, scansion.assets; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
