"""Selecting by a bound finds what ``torch.topk`` finds, in C as in numpy, however many threads there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scansion.execution.cpu import native, top_k
from scansion.execution.cpu.top_k import cells_above
from scansion.execution.operations import top_k as largest_positive


def dense(x: Tensor, k: int) -> Tensor:
    columns, values, counts = largest_positive(x, k)
    rows = torch.arange(len(x)).repeat_interleave(counts)
    return torch.zeros_like(x).index_put((rows, columns), values)


def expected(x: Tensor, k: int) -> Tensor:
    top = x.topk(min(k, x.shape[1]), dim=1)
    return torch.zeros_like(x).scatter(1, top.indices, top.values.relu())


@pytest.fixture(params=[(1, "C"), (3, "C"), (1, "numpy"), (3, "numpy")], ids=lambda p: f"{p[0]} {p[1]}")
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    n_threads, way = request.param
    if way == "numpy":
        monkeypatch.setattr(native, "_library", lambda: None)
    elif not native.built():
        pytest.skip("Scansion was installed without a C compiler")
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    for module in (native, top_k):
        monkeypatch.setattr(module, "ROWS", 2)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", [3, 5, 37, 160, 1000])
@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0], ids=["none positive", "few positive", "half positive"])
def test_it_is_the_top_k(width: int, shift: float) -> None:
    x = torch.randn(11, width, generator=torch.Generator().manual_seed(width)) + shift
    x[3] = -torch.inf
    for k in (1, 5, 8):
        assert torch.equal(dense(x, k), expected(x, k))


@pytest.mark.usefixtures("threads")
def test_of_equal_entries_no_more_are_taken_than_there_are_places() -> None:
    x = torch.randint(0, 4, (50, 60), generator=torch.Generator().manual_seed(0)).float()
    found = dense(x, 5)
    assert torch.equal(found.sort(dim=1).values, expected(x, 5).sort(dim=1).values)
    assert torch.equal(found[found > 0], x[found > 0])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n_bad", [1, 7])
def test_a_nan_is_not_passed_over(n_bad: int) -> None:
    x = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    x[4, :n_bad] = torch.nan
    _, values, _ = largest_positive(x, 5)
    assert int(values.isnan().sum()) == min(n_bad, 5)


@pytest.mark.usefixtures("threads")
def test_cells_above_a_floor() -> None:
    x = torch.randn(11, 37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cells_above(x, 0.3), (x > 0.3).flatten().nonzero().squeeze(1))
    assert torch.equal(cells_above(x, 0.3), cells_above(x.double(), 0.3))
