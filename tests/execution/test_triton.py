"""Triton kernels give the sums that torch's operations give: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scansion.execution import backends
from scansion.execution.sparse_acts import SparseActs, reconstruct
from tests.execution.curves import losses_of
from tests.masks.families import EVERYWHERE, FAMILIES, NONE_DEAD, make_sae, some_x

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution.cuda import kernels
from scansion.execution.cuda import rows as triton_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Entries of each segment; pieces have 8.
SEGMENTS = {
    "none": [],
    "all empty": [0, 0],
    "one of one": [1],
    "empty ones between": [0, 3, 0, 0, 2, 0],
    "one long": [200],
    "long ones, empty ones between": [2, 30, 0, 30, 0, 0, 61, 1],
    "ends where a piece ends": [8, 8, 16, 24, 0, 8],
    "one more than a piece": [9, 9, 9, 9],
}

ALL_KERNELS = {
    "_largest", "_sum_segments", "_sum_pieces", "_sum_values", "_dots", "_set_bits", "_count_bits", "_place",
    "_dots_of_rows", "_adam", "_begin", "_count_keys", "_narrow", "_count_kept", "_write_kept",
    "_mask", "_forward", "_backward", "_sum_positions",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in each direction, for sizes that can be interpreted."""
    for name, size in (("PIECE", 8), ("BLOCK_ROWS", 4), ("BLOCK_D", 16), ("DOT_ROWS", 4), ("DOT_D", 16)):
        monkeypatch.setattr(triton_rows, name, size)


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse step is made of Triton kernels, whatever the device."""
    monkeypatch.setattr(backends, "BACKENDS", [replace(backends.BACKENDS[1], module_for=lambda *tensors: kernels)])


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def draw_rows(n: int, below: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, (n,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_added_in_float32(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("d", "dtype"),
    [(37, torch.float32), (37, torch.bfloat16), (1, torch.float32)],
    ids=["37 float32", "37 bfloat16", "1 float32"],
)
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_a_segment_is_the_weighted_sum_of_its_rows(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    counts = torch.tensor(lengths, dtype=torch.int64, device=DEVICE)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    table, weights = draw(11, d, dtype=dtype), draw(sum(lengths), dtype=dtype, seed=1)
    weights[::3] = 0
    names = draw_rows(len(weights), 11)
    found = triton_rows.sum_of_rows(names, table, offsets, weights)
    segments = torch.arange(len(lengths), device=DEVICE).repeat_interleave(counts)
    products = table[names].double() * weights[:, None].double()
    assert_added_in_float32(found, products.new_zeros(len(lengths), d).index_add_(0, segments, products))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("nnz", "d"), [(0, 5), (1, 1), (4, 16), (23, 37)])
def test_an_entry_is_the_dot_product_of_its_rows(nnz: int, d: int, dtype: torch.dtype) -> None:
    left, right = draw(7, d, dtype=dtype), draw(9, d, dtype=dtype, seed=1)
    left_rows, right_rows = draw_rows(nnz, 7), draw_rows(nnz, 9, seed=1)
    found = triton_rows.dots_at_entries(left, right, left_rows, left_rows, right_rows)
    assert_added_in_float32(found, (left[left_rows].double() * right[right_rows].double()).sum(dim=1))


def test_rows_need_not_lie_together_in_memory() -> None:
    wide, tall = draw(11, 80)[:, :37], draw(37, 11).T
    names, offsets, weights = draw_rows(20, 11), torch.tensor([0, 3, 20], device=DEVICE), draw(20)
    for table in (wide, tall):
        for found, expected in (
            (triton_rows.sum_of_rows(names, table, offsets, weights),
             triton_rows.sum_of_rows(names, table.contiguous(), offsets, weights)),
            (triton_rows.dots_at_entries(table, table, names, names, names), table.square().sum(dim=1)[names]),
        ):  # fmt: skip
            torch.testing.assert_close(found, expected)


def learnt(
    x: torch.Tensor, weights: list[torch.Tensor], entries: SparseActs, bias_of_token: torch.Tensor
) -> list[torch.Tensor]:
    """What entries leave of x, and the gradients of the encoder, the decoder and the biases for a loss on that."""
    W_enc, b_enc, W_dec, biases = (w.clone().requires_grad_() for w in weights)
    _, residual = reconstruct(entries, x, W_enc, b_enc, W_dec, biases, bias_of_token)
    residual.square().sum().backward()
    return [residual, W_enc.grad, b_enc.grad, W_dec.grad, biases.grad]


def test_entries_are_decoded_and_learnt_from_as_by_torch(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token that has no entry, a feature that fires on nearly all tokens, and entries of value 0."""
    n, d, d_sae = 24, 21, 9
    acts = draw(n, d_sae).relu()
    acts[:, 2] += 1
    acts[17] = 0
    where = acts.nonzero()
    values = acts[acts > 0].clone()
    values[5::7] = 0
    offsets = torch.cat([where.new_zeros(1), torch.bincount(where[:, 0], minlength=n).cumsum(0)])
    weights = [draw(d_sae, d, seed=2).T, draw(d_sae, seed=3), draw(d_sae, d, seed=4), draw(2, d, seed=5)]
    x, biases = draw(n, d, seed=6), draw_rows(n, 2)
    found = learnt(x, weights, SparseActs(where[:, 1], values, offsets, d_sae), biases)
    monkeypatch.setattr(backends, "BACKENDS", ())
    expected = learnt(x, weights, SparseActs(where[:, 1], values, offsets, d_sae), biases)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "mask"), [("topk", "random_hard"), ("batch_topk", "bands, shared"), ("relu", "static_slicing")]
)
def test_a_step_is_that_of_the_dense_form(architecture: str, mask: str, with_triton: None) -> None:
    sparse, dense = (make_sae(architecture, FAMILIES[mask]).train().to(DEVICE) for _ in range(2))
    x, positions, dead = (tensor.to(DEVICE) for tensor in (some_x(n=2), EVERYWHERE, NONE_DEAD))
    found = losses_of(sparse, x, positions, dead, way="sparse")
    expected = losses_of(dense, x, positions, dead, way="dense")
    torch.testing.assert_close(found.residual, expected.residual)
    for losses in (found, expected):
        (losses.reconstruction + losses.sparsity + losses.auxiliary).backward()
    for (name, parameter), (_, reference) in zip(sparse.named_parameters(), dense.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_gpus_without_spills_and_add_without_atomics(capability: int, tmp_path: Path) -> None:
    """Down to machine code, which the interpreter never sees; sums without atomic operations have one order."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == ALL_KERNELS
    assert [kernel for kernel in kernels if kernel["spilled"]] == []
    # Setting bits and counting come to the same in any order, unlike adding numbers with fractions.
    assert {kernel["kernel"] for kernel in kernels if kernel["atomics"]} == {"_set_bits", "_count_keys"}
