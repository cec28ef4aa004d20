"""Laws of the cache: what is read is what was kept, damage is noticed, and the limit is never passed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.evals.reading.cache import ActivationCache


def tensors(seed: int, n: int = 250) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(n, generator=torch.Generator().manual_seed(seed)), "n": torch.tensor([seed])}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*"))


def test_what_was_kept_comes_back_and_nothing_else_does(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path / "new", 10**6)
    assert cache.load("a") is None
    cache.keep("a", tensors(1))
    found = ActivationCache(tmp_path / "new", 10**6).load("a")
    assert found is not None
    for name, tensor in tensors(1).items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_file_is_noticed_and_removed(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ActivationCache(tmp_path, 10**6)
    cache.keep("a", tensors(1))
    (path,) = tmp_path.glob("*")
    whole = path.read_bytes()
    changed = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    path.write_bytes({"cut": whole[:-9], "changed": changed, "emptied": b""}[damage])
    assert cache.load("a") is None and not path.exists()
    cache.keep("a", tensors(1))
    assert cache.load("a") is not None


def test_the_oldest_make_room_but_those_in_use_do_not(tmp_path: Path) -> None:
    limit = 3_000
    old = ActivationCache(tmp_path, limit)
    for index, key in enumerate("ab"):
        old.keep(key, tensors(index))
    cache = ActivationCache(tmp_path, limit)
    assert cache.load("a")
    for index, key in enumerate("cde"):
        cache.keep(key, tensors(index))
        assert size(tmp_path) <= limit
    kept = {key for key in "abcde" if cache.load(key)}
    assert kept == {"a", "c"}, "b was not in use and made room; d and e found none"


def test_a_limit_of_zero_keeps_nothing(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path / "new", 0)
    cache.keep("a", tensors(1))
    assert cache.load("a") is None and not (tmp_path / "new").exists()
