"""An asset is missing, present or damaged, and verifying notices every changed byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scansion.assets import asset_path, cache_dir, fetch, status, verify
from scansion.errors import AssetError


def test_cache_dir_is_the_first_of_three(monkeypatch) -> None:
    monkeypatch.setenv("SCANSION_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_dir() == Path("/one")
    monkeypatch.setenv("SCANSION_CACHE", "")
    assert cache_dir() == Path("/two/scansion")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "scansion"


def test_a_missing_asset_says_how_to_fetch_it(tiny) -> None:
    assert status("tiny") == "missing"
    with pytest.raises(AssetError, match=r"missing.*run `scansion assets fetch tiny`"):
        asset_path("tiny")
    with pytest.raises(AssetError, match="run `scansion assets fetch tiny`"):
        verify(["tiny"])
    assert verify() == {}


def test_a_fetched_asset_verifies(downloads) -> None:
    fetch()
    assert status("tiny") == "present"
    assert verify() == verify(["tiny"]) == {"tiny": 3}


def test_the_record_names_the_wheel_and_every_file(downloads, tiny) -> None:
    fetch()
    record = json.loads((asset_path("tiny") / "asset.json").read_text())
    assert record["sha256"] == tiny.sha256
    assert set(record["files"]) == {"tiny/data/a.txt", "tiny/data/b.txt", "tiny-1.0.dist-info/LICENSE"}
    assert record["files"]["tiny/data/b.txt"]["size"] == 3000


def test_one_changed_byte_is_noticed(downloads) -> None:
    fetch()
    (asset_path("tiny") / "tiny/data/a.txt").write_bytes(b"fjrst\n")
    with pytest.raises(AssetError, match=r"a\.txt has another hash"):
        verify()


@pytest.mark.parametrize(
    ("harm", "report"),
    [
        (lambda folder: (folder / "tiny/data/a.txt").unlink(), r"a\.txt is gone"),
        (lambda folder: (folder / "tiny/data/a.txt").write_bytes(b""), r"a\.txt has another size"),
        (lambda folder: (folder / "tiny/data/c.txt").write_bytes(b"c"), r"c\.txt was added"),
        (lambda folder: (folder / "asset.json").unlink(), "unreadable"),
        (lambda folder: (folder / "asset.json").write_text("{"), "unreadable"),
        (lambda folder: (folder / "asset.json").write_text('{"sha256": "of another wheel"}'), "another wheel"),
    ],
    ids=["lost", "cut", "added", "no record", "torn record", "old record"],
)
def test_damage_is_noticed_by_all_and_mended_by_fetch(downloads, harm, report) -> None:
    fetch()
    harm(asset_path("tiny"))
    assert status("tiny") == "damaged"
    with pytest.raises(AssetError, match="damaged"):
        asset_path("tiny")
    with pytest.raises(AssetError, match=report):
        verify()
    assert fetch() == {"tiny": "fetched"}
    assert verify() == {"tiny": 3}


def test_hidden_files_do_no_harm(downloads) -> None:
    fetch()
    (asset_path("tiny") / "tiny" / ".nfs0001").write_bytes(b"")
    assert verify() == {"tiny": 3}
