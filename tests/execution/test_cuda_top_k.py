"""The top-k kernel keeps exactly what a sort would keep: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution.cuda import top_k

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several reads per row, for sizes that can be interpreted."""
    monkeypatch.setattr(top_k, "GROUPS", 32)


def expected(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By a stable sort, which puts the first of equal entries first."""
    order = x.float().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    return order, x.gather(1, order).relu()


ROWS = {
    "random": lambda g, t, w: torch.randn(t, w, generator=g),
    "many ties": lambda g, t, w: torch.randint(-2, 3, (t, w), generator=g).float(),
    "all equal": lambda g, t, w: torch.full((t, w), 0.5),
    "fewer positive than k": lambda g, t, w: torch.randn(t, w, generator=g).where(
        torch.arange(w) % 17 == 3, torch.tensor(-1.0)
    ),
    "none positive": lambda g, t, w: -torch.rand(t, w, generator=g),
    "masked": lambda g, t, w: torch.randn(t, w, generator=g).masked_fill(torch.arange(w) % 2 == 0, -torch.inf),
    "one group has all": lambda g, t, w: torch.randn(t, w, generator=g).abs() * (1 + 9 * (torch.arange(w) % 32 == 7)),
    "tiny and huge": lambda g, t, w: (
        torch.randn(t, w, generator=g) * 10.0 ** torch.randint(-30, 30, (t, w), generator=g)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("width", "k"), [(200, 7), (32, 8), (77, 1)])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_each_row_keeps_its_k_largest_positive_entries(rows, width: int, k: int, dtype: torch.dtype) -> None:
    x = rows(torch.Generator().manual_seed(3), 5, width).to(DEVICE, dtype)
    assert top_k.supports(width, k)
    columns, values = top_k.largest_per_row(x, k)
    order, kept = expected(x, k)
    for row in range(len(x)):
        positive = kept[row] > 0
        n = int(positive.sum())
        assert columns[row, :n].tolist() == order[row][positive].tolist()
        assert torch.equal(values[row, :n], kept[row][positive])
        assert (values[row, n:] == 0).all() and (columns[row, n:] == 0).all()


def test_rows_may_be_part_of_wider_ones() -> None:
    whole = torch.randn(4, 120, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    columns, values = top_k.largest_per_row(whole[:, 20:84], 5)
    order, kept = expected(whole[:, 20:84], 5)
    assert torch.equal(columns, order) and torch.equal(values, kept)


def test_a_nan_is_kept_so_that_whoever_reads_it_sees_it() -> None:
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[1, 40] = torch.nan
    columns, values = top_k.largest_per_row(x, 4)
    assert values.isnan().sum(dim=1).tolist() == [0, 1, 0] and 40 in columns[1]


def test_rows_too_narrow_for_the_bound_are_left_to_torch() -> None:
    assert top_k.supports(32, 8) and not top_k.supports(31, 8) and not top_k.supports(10_000, 9)
