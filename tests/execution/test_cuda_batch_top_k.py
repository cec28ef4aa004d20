"""The kernels of BatchTopK keep exactly what a sort of the whole batch would: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution.cuda import batch_top_k
from scansion.execution.entries import RowEntries

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(5, 40), (3, 77)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several reads per row and several per program, for sizes that can be interpreted."""
    for name, size in (("BLOCK", 32), ("WRITE_BLOCK", 16), ("PROGRAMS", 3)):
        monkeypatch.setattr(batch_top_k, name, size)


def dense(found: RowEntries, width: int) -> torch.Tensor:
    features, values, counts = found
    assert counts.sum() == len(features)
    rows = torch.arange(len(counts), device=DEVICE).repeat_interleave(counts)
    return torch.zeros(len(counts), width, device=DEVICE).index_put((rows, features), values, accumulate=True)


def by_comparison(x: torch.Tensor, n: int) -> torch.Tensor:
    """All entries that reach the n-th largest, as the dense way keeps them."""
    return x.where((x >= x.flatten().topk(min(n, x.numel())).values.min()) & (x > 0), 0.0).float()


def drawn(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(DEVICE, dtype) for size in SIZES]


@pytest.mark.parametrize("guess", [-1.0, 0.0, 1e-30, 0.3, 1.0, 100.0, torch.inf, torch.nan])
@pytest.mark.parametrize("n", [1, 30, 170, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_wherever_the_search_begins_the_largest_entries_of_all_rows_are_kept(
    dtype: torch.dtype, n: int, guess: float
) -> None:
    x = torch.cat([each.flatten() for each in drawn(1, dtype)])[None]
    found = batch_top_k.largest_of_all([(x, [(1, None)])], n, torch.tensor(guess, device=DEVICE))
    assert torch.equal(dense(found, x.shape[1]), by_comparison(x, n))
    assert len(found[0]) == n + max(1, n // batch_top_k.SPARE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_matrices_of_several_widths_share_the_places_and_name_their_columns(dtype: torch.dtype) -> None:
    wide, narrow = drawn(2, dtype)[1], drawn(2, dtype)[0]
    names = [(torch.arange(40, device=DEVICE) * 3 + shift) % 120 for shift in (0, 1)]
    expected = torch.zeros(8, 120, device=DEVICE, dtype=dtype)
    expected[:2, names[0]], expected[2:5, names[1]], expected[5:, :77] = narrow[:2], narrow[2:], wide
    parts = [(narrow, [(2, names[0]), (5, names[1])]), (wide, [(3, None)])]
    for last_place in (0.0, 1.0):
        found = batch_top_k.largest_of_all(parts, 60, torch.tensor(last_place, device=DEVICE))
        assert torch.equal(dense(found, 120), by_comparison(expected, 60))


@pytest.mark.parametrize("value", [0.5, 3e38, 1e-40])
def test_of_more_ties_than_there_is_room_for_the_first_are_kept(value: float) -> None:
    x = torch.full((4, 50), value, device=DEVICE)
    x[3, 49] = 2 * value if value < 1e38 else torch.inf
    found = dense(batch_top_k.largest_of_all([(x, [(4, None)])], 80, torch.tensor(value, device=DEVICE)), 50)
    expected = x.where(torch.arange(200, device=DEVICE).view(4, 50) < 89, 0.0)
    expected[3, 49] = x[3, 49]
    assert torch.equal(found, expected)


def test_without_a_positive_entry_nothing_is_kept_and_a_nan_is() -> None:
    x = -torch.rand(3, 40, device=DEVICE)
    x[0, 1], x[2, 2] = -torch.inf, 0.0
    features, values, counts = batch_top_k.largest_of_all([(x, [(3, None)])], 16, torch.tensor(0.1, device=DEVICE))
    assert not values.any() and not features.any() and counts.tolist() == [0, 0, 18]
    x[1, 5] = torch.nan
    _, values, counts = batch_top_k.largest_of_all([(x, [(3, None)])], 16, torch.tensor(0.1, device=DEVICE))
    assert values.isnan().tolist() == [True] + [False] * 17 and counts.tolist() == [0, 1, 17]
