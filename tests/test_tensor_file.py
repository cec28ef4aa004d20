"""A file of tensors has the bytes that safetensors would write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from scansion.tensor_file import write_tensors


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
    }
    write_tensors(tmp_path / "ours", tensors, {"digest": 'a "name" with \u00e9'})
    assert (tmp_path / "ours").read_bytes() == save(tensors, metadata={"digest": 'a "name" with \u00e9'})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "ours").items())
