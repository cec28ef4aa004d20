"""A file of tensors has the bytes that safetensors would write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from scansion.errors import DamagedError
from scansion.tensor_file import load_tensors, save_tensors, write_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bytes_are_those_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "acts": torch.randn(3, 5, 7).to(dtype),
        "tokens": torch.arange(15, dtype=torch.int32).view(3, 5),
        "doc_ids": torch.zeros(3, 5, dtype=torch.int32),
        "valid": torch.rand(3, 5) > 0.5,
        "count": torch.arange(3),
        "norm_sum": torch.rand(3, dtype=torch.float64),
        "act_sum": torch.rand(3, 7, dtype=torch.float64),
        "generator": torch.Generator().manual_seed(0).get_state(),
        "signed": torch.arange(-3, 3, dtype=torch.int8),
        "short": torch.arange(-3, 3, dtype=torch.int16),
        "step": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "ours", tensors, {"digest": 'a "name" with \u00e9'})
    assert (tmp_path / "ours").read_bytes() == save(tensors, metadata={"digest": 'a "name" with \u00e9'})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "ours").items())


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4).view(2, 2).T, "b": torch.tensor(2.0)}
    digests = {save_tensors(tmp_path / name, tensors, of="x") for name in "pqrs"}
    assert len(digests) == 1 and len({(tmp_path / name).read_bytes() for name in "pqrs"}) == 1
    again = load_tensors(tmp_path / "p", *digests, of="x")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_another_shape_type_or_owner_is_noticed(tmp_path: Path) -> None:
    plain = torch.arange(4, dtype=torch.int32)
    digest = save_tensors(tmp_path / "a", {"a": plain}, of="x")
    for other in (plain.view(2, 2), plain.view(torch.float32), plain + 1):
        save_tensors(tmp_path / "b", {"a": other}, of="x")
        with pytest.raises(DamagedError, match="not the file that was written here"):
            load_tensors(tmp_path / "b", digest)
    with pytest.raises(DamagedError, match="belongs to something else"):
        load_tensors(tmp_path / "a", of="y")
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes().replace(b'"I32"', b'"F32"'))
    with pytest.raises(DamagedError, match="do not match their digest"):
        load_tensors(tmp_path / "c")
