"""Screening finds what the whole product in float32 has, and leaves alone what it cannot tell apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scansion.execution import backends
from scansion.execution.blocks import Block
from scansion.execution.cpu import native, native_screen, screening
from scansion.execution.encoder import Encoder
from scansion.execution.selection import select_over_batch, select_top_k
from tests.execution.screens import SCREENS

built = pytest.mark.skipif(not native.built(), reason="Scansion was installed without a C compiler")
screened = pytest.mark.usefixtures("screens")
K = 5


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Screening for as few tokens as these tests have."""
    monkeypatch.setattr(backends, "SCREENING_TOKENS", 1)


def without_screening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "screening", lambda: None)


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def encoder(d: int = 130, width: int = 300, scale: float = 1.0, pieces: tuple[slice, ...] = (slice(None),)) -> Encoder:
    """Of tokens at ten positions, one of which is nothing but zeros, and features some of which are alike."""
    x, W = draw(10, 9, d) * scale, draw(width, d, seed=1)
    x[4, 3] = 0
    W[7:40:11] = W[:1]
    return encoder_of(x, W, draw(width, seed=2), pieces)


def encoder_of(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    pieces: tuple[slice, ...] = (slice(None),),
    closed: Tensor | None = None,
    weights: Tensor | None = None,
) -> Encoder:
    """All tokens in one block, with the features in these ranges."""
    ranges = tuple(slice(*piece.indices(len(b))[:2]) for piece in pieces)
    features = torch.cat([torch.arange(piece.start, piece.stop) for piece in ranges])
    names = None if len(features) == len(b) else features
    return Encoder(x, W, b, [Block(slice(0, len(x)), ranges, names, closed, weights=weights)])


def product(source: Encoder) -> Tensor:
    """Pre-activations of all features in double precision, times their weights; what is closed, of weight 0 or not of the
    pieces at minus infinity."""
    x, W, b = (each.double() for each in (source.x, source.W_enc, source.b_enc))
    (block,) = source.blocks
    features = torch.cat([torch.arange(len(b))[piece] for piece in block.pieces])
    own = (x @ W.T + b)[..., features]
    if block.weights is not None and block.closed is None:
        own = (own * block.weights[:, None]).masked_fill(block.weights[:, None] == 0, -torch.inf)
    if block.closed is not None:
        own = own.masked_fill(block.closed[:, None], -torch.inf)
    return x.new_full((*x.shape[:2], len(b)), -torch.inf).index_copy(-1, features, own).flatten(0, 1)


def require_largest(found: list[tuple[Tensor, Tensor, Tensor]], whole: Tensor, k: int = K) -> None:
    """The k largest positive ones of each row, to float32's rounding, each with its own value."""
    features, values, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert torch.equal(counts, (whole > 0).sum(dim=1).clamp(max=k))
    rows = torch.arange(len(whole)).repeat_interleave(counts)
    places = rows * whole.shape[1] + features
    assert len(places.unique()) == len(places)
    near = {"rtol": 1e-5, "atol": 1e-5 * float(whole[whole.isfinite()].abs().max())}
    torch.testing.assert_close(values.double(), whole.flatten()[places], **near)
    dense = torch.zeros_like(whole).index_put((rows, features), values.double())
    largest = whole.topk(k, dim=1).values.clamp(min=0)
    torch.testing.assert_close(dense.topk(k, dim=1).values, largest, **near)


def require_above(found: list[tuple[Tensor, Tensor, Tensor]], whole: Tensor, floor: float) -> None:
    """All that exceed the floor, in order, but for what float32 might round to either side of it."""
    features, values, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    places = torch.arange(len(whole)).repeat_interleave(counts) * whole.shape[1] + features
    assert len(places.unique()) == len(places)
    torch.testing.assert_close(values.double(), whole.flatten()[places], rtol=1e-5, atol=1e-5)
    assert bool((values > floor).all())
    missed = whole.flatten().index_fill(0, places, -torch.inf)
    assert float(missed.max()) <= floor * (1 + 1e-5)


def exact(rounded: native_screen.Rounded, d: int) -> Tensor:
    """The numbers that rounded rows stand for."""
    rows = rounded.rows[:, :d].double()
    return rows if rounded.scales is None else rows * rounded.scales[:, None].double()


@built
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int16])
@pytest.mark.parametrize("d", [3, 16, 37])
def test_rows_are_rounded_as_torch_does_it_and_measured(d: int, dtype: torch.dtype) -> None:
    rows = draw(70, d)
    rows[3], rows[4, 1], rows[5] = 0, 1 + 2**-8, 1 + 3 * 2**-8  # two that lie half way between others
    rounded = native_screen.round_rows(rows, dtype)
    expected = rows.bfloat16() if rounded.scales is None else (rows / rounded.scales[:, None]).round().short()
    assert torch.equal(rounded.rows[:, :d], expected)
    torch.testing.assert_close(rounded.norms, rows.norm(dim=1))
    torch.testing.assert_close(rounded.errors, (rows - exact(rounded, d)).norm(dim=1).float())


@built
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("row", [[0.0, 32767.5, 0.0], [1.0, 1.0, 1.0], [3e38, 1.0, 1.0], [torch.nan, torch.inf, 1e20]])
@pytest.mark.parametrize("d", [3, 1500])
def test_whole_numbers_are_so_small_that_no_sum_of_products_overflows(row: list[float], d: int) -> None:
    rounded = native_screen.round_rows(torch.tensor(row).repeat(1, d // 3), torch.int16)
    norm = exact(rounded, d).norm() / rounded.scales
    assert rounded.rows.double().norm() < 2**15 and bool(norm <= 2**15)


@built
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("width", [5, 160, 333])
@pytest.mark.parametrize("slack", [0.0, 0.02, 10.0])
def test_whatever_the_product_is_within_its_slack_the_largest_are_found(width: int, slack: float) -> None:
    source = encoder(width=width)
    x, norms, names = source.x.flatten(0, 1), source.x.flatten(0, 1).norm(dim=1), torch.arange(width - 1, -1, -1)
    off = slack * norms[:, None] * (2 * torch.rand(90, width, generator=torch.Generator().manual_seed(4)) - 1)
    products = (x @ source.W_enc[names].T + off).bfloat16()
    products[2], products[3, 4:] = -torch.inf, -torch.inf
    none, slacks = torch.zeros(width), torch.full((width,), 1.01 * slack + 1e-5)
    screen = native_screen.Screen(products, x, norms, 0 * norms, source.W_enc, source.b_enc[names], none, slacks, names)
    found, n_full = native_screen.screened_top_k(screen, K)
    assert found is not None
    whole = product(source)[:, names]
    whole[2], whole[3, 4:] = -torch.inf, -torch.inf
    require_largest([(width - 1 - found[0], *found[1:])], whole)
    above = native_screen.screened_above(screen, 0.5, products.numel())
    assert above is not None
    require_above([(width - 1 - above[0], *above[1:])], whole, 0.5)
    if slack < 1 and width > 100:
        assert n_full < 90 * 4 * K


@built
@screened
@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1.0, 1e10])
@pytest.mark.parametrize("d", [130, 577, 4096])
def test_rounding_moves_no_product_by_more_than_is_allowed_for(d: int, scale: float) -> None:
    """Not even where every rounding is the largest there is, and all go the same way."""
    dtype = backends.screening()[1]
    x, W = (draw(*size, seed=i).abs() for i, size in enumerate(((8, d), (40, d))))
    halfway = 1 + 2**-8 + 2**-20
    if dtype == torch.int16:
        place = native_screen.round_rows(torch.ones(1, d), dtype).scales.item()
        halfway = (round(1 / place) + 0.5) * place
    for rows in (x, W):
        rows[1], rows[2], rows[3, ::2], rows[4] = halfway, -halfway, -halfway, 1e-3
    x *= scale
    (screen,) = screening._screens(encoder_of(x[:, None], W, torch.zeros(40)), 1, 1 << 20)
    products, _, norms, errors, _, _, W_norms, W_errors, *_ = screen.tensors
    W_norms, W_errors = W_norms[:40], W_errors[:40]
    allowed = errors[:, None].double() * W_norms + (norms + errors)[:, None].double() * W_errors
    whole = x.double() @ W.double().T
    assert ((products.double() - whole).abs() <= allowed + products.double().abs() * 2**-8).all()
    rounded = exact(native_screen.round_rows(x, dtype), d) @ exact(native_screen.round_rows(W, dtype), d).T
    assert ((rounded - whole).abs() <= allowed).all()
    if scale > 1e-17:  # the least norm that is allowed for
        assert (rounded - whole).abs().max() > 0.3 * allowed.max()


@built
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("screens", [name for name in SCREENS if name != "bfloat16"], indirect=True)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 16, 37), (41, 130, 100), (700, 33, 50)])
@pytest.mark.parametrize("piece", [slice(None), slice(7, 45)])
def test_products_in_int16_are_exact_until_they_are_rounded(
    screens: torch.dtype, size: tuple[int, int, int], piece: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "ROWS", 20)
    n_rows, d, width = size
    x, W = (native_screen.round_rows(draw(n, d, seed=n), screens) for n in (n_rows, width))
    expected = (exact(x, d) @ exact(W, d)[piece].T).bfloat16()
    around = torch.full((n_rows, width + 3), 7.0, dtype=torch.bfloat16)
    native_screen.multiply(x, W, piece, around[:, 2 : 2 + expected.shape[1]])
    assert torch.equal(around[:, 2 : 2 + expected.shape[1]], expected)
    assert (around[:, :2] == 7).all() and (around[:, 2 + expected.shape[1] :] == 7).all()


@built
@screened
@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("width", [160, 333])
@pytest.mark.parametrize("pieces", [(slice(None),), (slice(0, 20), slice(70, None))], ids=["all", "two pieces"])
@pytest.mark.parametrize("mask", ["open", "closed", "all but closed", "weights", "of either sign", "straight through"])
def test_what_is_selected_is_what_the_whole_product_has(
    mask: str, pieces: tuple[slice, ...], width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "SCREENING_WIDTH", 1)
    monkeypatch.setattr(backends, "SCREENING_SHARE", 1)
    source = encoder(width=width, scale=scale, pieces=pieces)
    closed = weights = None
    if mask in ("closed", "all but closed", "straight through"):
        few = torch.arange(source.blocks[0].width) % (90 if mask == "all but closed" else 3)
        closed = torch.arange(10)[:, None] % 3 != few
    if mask in ("weights", "of either sign", "straight through"):
        weights = 40 * draw(10, source.blocks[0].width, seed=5)
        weights = weights if mask == "of either sign" else weights.relu()
        weights[:, 3:60:7] = 0
    source = encoder_of(source.x, source.W_enc, source.b_enc, pieces, closed, weights)
    at_once = 9 * 3 * source.blocks[0].width  # three positions
    found = screening.screened_top_k(source, K, at_once)
    assert found is not None
    assert len(found) == 4  # seven positions of a few tokens, and the three left
    require_largest(found, product(source))
    floor = 0.3 * float(product(source).max())
    found = screening.screened_above(source, floor, K, at_once)
    assert found is not None
    require_above(found, product(source), floor)


@built
@screened
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ROWS", 2)
    monkeypatch.setattr(backends, "SCREENING_SHARE", 1)
    found: list[list[Tensor]] = []
    for n_threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        for some in (
            screening.screened_top_k(encoder(), K, 1 << 20),
            screening.screened_above(encoder(), 20.0, K, 1 << 20),
        ):
            assert some is not None
            found.append([each for part in some for each in part])
    assert all(torch.equal(a, b) for i in range(2, 6) for a, b in zip(found[i % 2], found[i], strict=True))


@built
@screened
def test_it_is_not_done_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoder(width=1000)
    assert screening.screened_top_k(source, K, 1 << 20) is not None
    assert screening.screened_top_k(source, source.blocks[0].width // backends.SCREENING_WIDTH + 1, 1 << 20) is None
    assert screening.screened_top_k(encoder(d=backends.SCREENING_D_IN - 1, width=1000), K, 1 << 20) is None
    without_screening(monkeypatch)
    assert screening.screened_top_k(source, K, 1 << 20) is None


@built
@screened
def test_features_too_alike_to_tell_apart_are_left_to_float32() -> None:
    source = encoder()
    alike = encoder_of(source.x, source.W_enc[:1] + 1e-4 * source.W_enc, source.b_enc * 0)
    assert screening.screened_top_k(alike, K, 1 << 20) is None
    found = select_top_k(alike, K)
    require_largest([(found.features, found.values, found.offsets.diff())], product(alike))
    assert screening.screened_above(alike, 0.1, K, 1 << 20) is None


@built
@screened
@pytest.mark.parametrize("floor", [1.0, 10.0, 1e6])
def test_over_a_batch_too_the_floor_decides_nothing(floor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoder(width=1000)
    found = [select_over_batch(source, 200, floor)]
    without_screening(monkeypatch)
    found.append(select_over_batch(source, 200, floor))
    assert torch.equal(found[0].features, found[1].features)
    assert torch.equal(found[0].offsets, found[1].offsets)
    torch.testing.assert_close(found[0].values, found[1].values)


@built
@screened
@pytest.mark.parametrize("where", ["x", "W_enc", "b_enc", "weights"])
@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf, 1e20, 3e38])
@pytest.mark.parametrize("pieces", [(slice(None),), (slice(0, 20), slice(70, 1000))], ids=["all", "two pieces"])
def test_what_is_not_finite_gives_what_float32_gives(
    pieces: tuple[slice, ...], what: float, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers whose squares are too large too; no closed feature fires, and nothing beyond the features is read."""
    source = encoder(width=1999, pieces=pieces)
    closed = torch.arange(10)[:, None] % 3 == torch.arange(source.blocks[0].width) % 3
    weights = draw(10, source.blocks[0].width, seed=5).relu()
    masks = (None, weights) if where == "weights" else (closed, None)
    source = encoder_of(source.x, source.W_enc, source.b_enc, pieces, *masks)
    (weights if where == "weights" else getattr(source, where)).view(-1)[540] = what
    found = [select_top_k(source, K), select_over_batch(source, 200, 30.0)]
    without_screening(monkeypatch)
    expected = [select_top_k(source, K), select_over_batch(source, 200, 30.0)]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.features, theirs.features) and torch.equal(mine.offsets, theirs.offsets)
        torch.testing.assert_close(mine.values, theirs.values, equal_nan=True, rtol=1e-4, atol=1e-4)


@built
@screened
def test_a_few_tokens_are_not_worth_rounding_the_encoder_for(monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoder(width=1000)
    monkeypatch.setattr(backends, "SCREENING_TOKENS", source.n_tokens + 1)
    assert screening.screened_top_k(source, K, 1 << 20) is None
