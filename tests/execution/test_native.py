"""The C part gives what torch gives, whatever the number of threads, and is done without where it cannot be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scansion.execution.cpu import native
from scansion.execution.sparse_acts import SparseActs, reconstruct

built = pytest.mark.skipif(not native.built(), reason="Scansion was installed without a C compiler")
every_build = pytest.mark.usefixtures("build")


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def some_entries(n: int, d_sae: int) -> SparseActs:
    """With a token that has none, a feature that fires nearly everywhere, one that never does, and entries of value 0."""
    acts = draw(n, d_sae).relu()
    acts[:, 2] += 1
    acts[:, 5] = 0
    acts[7] = 0
    where = acts.nonzero()
    values = acts[acts > 0].clone()
    values[5::7] = 0
    offsets = torch.cat([where.new_zeros(1), torch.bincount(where[:, 0], minlength=n).cumsum(0)])
    return SparseActs(where[:, 1], values, offsets, d_sae)


def learnt(d: int, n: int = 24, d_sae: int = 9, one_bias: bool = True) -> list[Tensor]:
    """What entries leave of x, and the gradients for a loss on that and on the values."""
    weights = [
        draw(d_sae, d, seed=2).T,
        draw(d_sae, seed=3),
        draw(d_sae, d, seed=4),
        draw(1 if one_bias else 2, d, seed=5),
    ]
    W_enc, b_enc, W_dec, biases = ((w / w.shape[-1] ** 0.5).requires_grad_() for w in weights)
    bias_of_token = None if one_bias else torch.arange(n) % 2
    entries, residual = reconstruct(
        some_entries(n, d_sae), draw(n, d, seed=6), W_enc, b_enc, W_dec, biases, bias_of_token
    )
    (residual.square().sum() + 0.3 * entries.values.sum()).backward()
    found = [residual.detach(), W_enc.grad, b_enc.grad, W_dec.grad, biases.grad]
    return [each for each in found if each is not None]


@built
@every_build
@pytest.mark.parametrize("one_bias", [True, False])
@pytest.mark.parametrize("d", [3, 16, 37, 128])
def test_entries_are_decoded_and_learnt_from_as_by_torch(
    d: int, one_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = learnt(d, one_bias=one_bias)
    monkeypatch.setattr(native, "_library", lambda: None)
    expected = learnt(d, one_bias=one_bias)
    assert len(found) == len(expected) == 5
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@built
@every_build
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ROWS", 2)
    found: list[list[Tensor]] = []
    for n_threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        found.append(learnt(37, n=80))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@built
@every_build
def test_entries_are_grouped_by_feature_in_their_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = some_entries(24, 9).by_feature
    monkeypatch.setattr(native, "_library", lambda: None)
    for mine, theirs in zip(found, some_entries(24, 9).by_feature, strict=True):
        assert torch.equal(mine, theirs)


@built
@every_build
def test_rows_may_have_names_of_their_own_for_the_columns() -> None:
    x = draw(10, 40)
    names = [(3, torch.arange(100, 140)), (9, None), (10, torch.arange(39, -1, -1))]
    places, values, counts = native.top_k(x, 4, names) or ()
    rows = torch.arange(10).repeat_interleave(counts)
    columns = torch.where(rows < 3, places - 100, torch.where(rows < 9, places, 39 - places))
    assert torch.equal(x[rows, columns], values)
    assert torch.equal(values.view(10, 4).sort(dim=1).values, x.topk(4).values.sort(dim=1).values)


@built
@every_build
def test_a_row_of_nothing_but_nan_is_given_up_on_before_anything_is_written() -> None:
    x = draw(200, 1000)
    x[150:] = torch.nan
    assert all(native.top_k(x, 3, [(200, torch.arange(1000))]) is None for _ in range(20))


@built
@every_build
@pytest.mark.parametrize("d", [3, 16, 37])
def test_passes_over_rows_are_torch_s(d: int) -> None:
    rows, gradient, weights = draw(200, d, seed=1), draw(200, d, seed=2), draw(200, seed=3)
    rows[7] = 0
    torch.testing.assert_close(native.weighted_sum(weights, rows), weights @ rows, rtol=1e-4, atol=1e-4)
    unit = rows.clone()
    native.normalise(unit)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(rows))
    expected = gradient - unit * (gradient * unit).sum(dim=1, keepdim=True)
    native.remove_parallel(unit, gradient)
    torch.testing.assert_close(gradient, expected)


@built
@every_build
@pytest.mark.parametrize("width", [5, 16, 37])
def test_all_above_a_floor_are_found_unless_they_are_too_many(width: int) -> None:
    x = draw(150, width)
    x[3], x[4, 1] = -torch.inf, torch.nan
    names = [(3, torch.arange(100, 100 + width)), (150, None)]
    found = native.above(x, 0.3, names, int((x > 0.3).sum()))
    assert not isinstance(found, int)
    places, values, counts = found
    assert torch.equal(counts, (x > 0.3).sum(dim=1))
    assert torch.equal(values, x[x > 0.3])
    columns = (x > 0.3).nonzero()[:, 1]
    early = torch.arange(150).repeat_interleave(counts) < 3
    assert torch.equal(places, torch.where(early, columns + 100, columns))
    assert native.above(x, 0.3, names, len(values) - 1) == len(values)


@pytest.mark.parametrize(
    "x",
    [draw(3, 4).double(), draw(4, 3).T, draw(3, 4).bfloat16(), torch.empty(3, 4, device="meta")],
    ids=["double", "turned", "half", "elsewhere"],
)
def test_it_serves_only_what_it_can_read(x: Tensor) -> None:
    assert not native.supports(x)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (None, "no C compiler"),
        (SimpleNamespace(origin="nowhere/_native.so"), "nowhere"),
    ],
    ids=["not built", "lost"],
)
def test_one_line_says_why_it_is_done_without(
    spec: SimpleNamespace | None, why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "find_spec", lambda name: spec)
    assert native._library.__wrapped__() is None
    (line,) = capfd.readouterr().err.splitlines()
    assert why in line


@built
def test_a_library_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert native._library.__wrapped__() is None
    assert "install Scansion again" in " ".join(capfd.readouterr().err.split())


def test_versions_agree() -> None:
    source = (Path(native.__file__).parent / "c" / "processor.c").read_text(encoding="utf-8")
    assert f"#define VERSION {native.VERSION}\n" in source
