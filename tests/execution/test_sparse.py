"""Sparse execution gives the numbers of the dense form: losses, gradients, and a whole run, whatever the mask."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import backends
from scansion.execution.blocks import Block
from scansion.execution.cpu import native, screening
from scansion.execution.encoder import Encoder
from scansion.execution.plan import open_ways
from scansion.execution.selection import select_over_batch, select_positive, select_top_k
from scansion.execution.sparse import encode_sparse
from scansion.masks import MaskConfig, NoMaskConfig
from scansion.sae import MatryoshkaConfig, TSAEConfig, build_sae
from tests.execution.curves import curve_of, losses_of, require_same_as_dense
from tests.execution.screens import SCREENS, use_screen
from tests.masks.families import BANDED, D_IN, D_SAE, EVERYWHERE, FAMILIES, NONE_DEAD, L, make_sae, some_x, with_acts_on

SPARSE = ["relu", "topk", "batch_topk", "matryoshka", "tsae"]
MASKS: dict[str, MaskConfig] = {
    "none": NoMaskConfig(),
    **{name: FAMILIES[name] for name in ("random_hard", "random_hard, shared", *BANDED)},
    "soft, placebo": with_acts_on("soft", "placebo"),
    "random_hard, both": with_acts_on("random_hard", "both"),
    "random_hard, straight_through": with_acts_on("random_hard", "straight_through"),
    "bands, placebo": with_acts_on("bands", "placebo"),
    "static_slicing, placebo": with_acts_on("static_slicing", "placebo"),
}
SOME_DEAD = torch.arange(D_SAE) % 4 == 1


@pytest.fixture(autouse=True, params=["float32", "bfloat16", SCREENS[-1]])
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sparse execution, in several chunks, and screening, for sizes at which they would not pay; which of the two."""
    if request.param == "float32":
        monkeypatch.setattr(backends, "screening", lambda: None)
    else:
        if not native.built():
            pytest.skip("Scansion was installed without a C compiler")
        use_screen(request.param, monkeypatch)
        for name in ("D_IN", "WIDTH", "TOKENS", "SHARE", "FEW"):
            monkeypatch.setattr(backends, f"SCREENING_{name}", 1)
    monkeypatch.setattr(backends, "DENSITY", 1.0)
    monkeypatch.setattr(backends, "RELU_DENSITY", 1.0)
    monkeypatch.setattr(backends, "CHUNK", 3 * 7 * D_SAE)
    return request.param


def before(architecture: str, positions: torch.Tensor) -> torch.Tensor | None:
    """The tokens before those of a batch, for an architecture that learns from them."""
    return some_x(n=7)[positions[1:] - 1].flip(1) if architecture == "tsae" else None


@pytest.mark.parametrize("architecture", SPARSE)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dead", [NONE_DEAD, SOME_DEAD], ids=["none dead", "some dead"])
@pytest.mark.parametrize("positions", [EVERYWHERE, EVERYWHERE[5:8]], ids=["all", "few"])
def test_losses_and_gradients_are_those_of_the_dense_form(architecture, mask, dead, positions) -> None:
    sparse, dense = (make_sae(architecture, MASKS[mask]).train() for _ in range(2))
    x, previous = some_x(n=7)[positions], before(architecture, positions)
    found = losses_of(sparse, x, positions, dead, previous, way="sparse")
    require_same_as_dense(found, losses_of(dense, x, positions, dead, previous, way="dense"), sparse, dense)


@pytest.mark.parametrize("architecture", SPARSE)
@pytest.mark.parametrize("mask", ["none", "random_hard", "bands, shared"])
def test_fifty_steps_follow_the_same_curve(architecture: str, mask: str) -> None:
    curves = [curve_of(architecture, MASKS[mask], way, SOME_DEAD) for way in ("sparse", "dense")]
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_in_use_too_active_entries_are_those_of_the_dense_form(mask: str, always: str) -> None:
    sae, x, positions = make_sae("topk", MASKS[mask]).eval(), some_x(n=7), EVERYWHERE[:, None]
    entries, acts = encode_sparse(sae, x, positions), sae.encode(x, positions).detach().flatten(0, 1)
    assert entries is not None
    found = torch.zeros_like(acts).index_put((entries.tokens, entries.features), entries.values)
    if always == "float32":
        assert torch.equal(found, acts)
    torch.testing.assert_close(found, acts)


@pytest.mark.parametrize(
    ("architecture", "mask"), [("topk", "soft"), ("switch", "bands"), ("relu", "bands"), ("batch_topk", "bands")]
)
def test_in_use_there_is_a_shorter_way_only_to_so_many_entries_as_are_known(architecture: str, mask: str) -> None:
    assert encode_sparse(make_sae(architecture, FAMILIES[mask]).eval(), some_x(n=7), EVERYWHERE[:, None]) is None


@pytest.mark.parametrize("architecture", ["jumprelu", "gated"])
def test_what_learns_from_more_than_its_active_entries_is_closed_to_it(architecture: str) -> None:
    assert "sparse" not in open_ways(make_sae(architecture).train())


@pytest.mark.parametrize("acts_on", ["gradient", "both"])
@pytest.mark.parametrize("family", ["soft", "importance", "adaptive"])
def test_a_mask_that_gates_gradients_stays_dense(family: str, acts_on: str) -> None:
    sae = make_sae("topk", with_acts_on(family, acts_on)).train()
    assert list(open_ways(sae)) == ["dense"]


@pytest.mark.parametrize("acts_on", ["forward", "straight_through"])
@pytest.mark.parametrize("family", ["soft", "importance", "adaptive"])
@pytest.mark.parametrize("architecture", SPARSE)
def test_the_weights_of_a_mask_learn_as_in_the_dense_form(architecture: str, family: str, acts_on: str) -> None:
    sparse, dense = (make_sae(architecture, with_acts_on(family, acts_on)).train() for _ in range(2))
    x, previous = some_x(n=7), before(architecture, EVERYWHERE)
    found = losses_of(sparse, x, EVERYWHERE, SOME_DEAD, previous, way="sparse")
    require_same_as_dense(found, losses_of(dense, x, EVERYWHERE, SOME_DEAD, previous, way="dense"), sparse, dense)


@pytest.mark.parametrize("family", ["soft", "importance", "adaptive"])
@pytest.mark.parametrize(
    ("architecture", "way"), [("topk", "sparse"), ("batch_topk", "sparse"), ("relu", "fused"), ("jumprelu", "fused")]
)
def test_masks_with_weights_do_not_take_the_dense_way(architecture: str, way: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).train()
    assert losses_of(sae, some_x(n=7), EVERYWHERE, NONE_DEAD).way == way


@pytest.mark.parametrize("prefixes", [(1.0,), (0.25, 0.99, 1.0)], ids=["one dictionary", "two that are equal"])
@pytest.mark.parametrize("kind", [MatryoshkaConfig, TSAEConfig])
def test_nested_dictionaries_may_be_one_or_equal(kind, prefixes: tuple[float, ...]) -> None:
    config = kind(d_sae=D_SAE, k=5, prefixes=prefixes)
    sparse, dense = (build_sae(config, D_IN, L, torch.Generator().manual_seed(0)).train() for _ in range(2))
    x = some_x(n=7)
    previous = x[:-1].flip(1) if kind is TSAEConfig else None
    found = losses_of(sparse, x, EVERYWHERE, NONE_DEAD, previous, way="sparse")
    require_same_as_dense(found, losses_of(dense, x, EVERYWHERE, NONE_DEAD, previous, way="dense"), sparse, dense)
    assert found.reconstruction.isfinite()


def test_it_is_chosen_where_few_features_are_active(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry more than the share allows, and the dense form is taken."""
    for share, way in ((5 / D_SAE, "sparse"), (4.9 / D_SAE, "dense")):
        monkeypatch.setattr(backends, "DENSITY", share)
        assert losses_of(make_sae("topk").train(), some_x(), EVERYWHERE, NONE_DEAD).way == way


def encoder(closed: torch.Tensor | None = None) -> tuple[Encoder, torch.Tensor]:
    """An encoder in two pieces, and its whole product with what is negative or closed at 0."""
    generator = torch.Generator().manual_seed(3)
    x, W, b = (torch.randn(size, generator=generator) for size in ((L, 7, D_IN), (D_SAE, D_IN), (D_SAE,)))
    product = (x @ W.T + b).relu()
    if closed is not None:
        product = product.masked_fill(closed[:, None], 0.0)
    block = Block(slice(0, L), (slice(0, 10), slice(10, D_SAE)), None, closed)
    return Encoder(x, W, b, [block]), product.flatten(0, 1)


@pytest.mark.parametrize(
    "closed", [None, torch.arange(L)[:, None] % 3 != torch.arange(D_SAE) % 3], ids=["open", "closed"]
)
def test_entries_are_those_of_the_whole_product(closed: torch.Tensor | None) -> None:
    source, product = encoder(closed)
    top = product.topk(5, dim=-1)
    largest = product.where(product >= product.flatten().topk(400).values.min(), 0.0)
    for found, expected in (
        (select_top_k(source, 5), torch.zeros_like(product).scatter(-1, top.indices, top.values)),
        (select_top_k(source, D_SAE + 9), product),
        (select_positive(source, product.numel()), product),
        (select_over_batch(source, product.numel(), 0.1), product),
        *((select_over_batch(source, 400, floor), largest) for floor in (0.0, 0.5, 100.0)),
    ):
        assert found is not None
        dense = torch.zeros_like(product).index_put((found.tokens, found.features), found.values)
        torch.testing.assert_close(dense, expected)
        assert torch.equal(found.fired(), (expected > 0).sum(dim=0))


def test_screening_is_what_is_tested_as_such(always: str) -> None:
    source, _ = encoder()
    assert (screening.screened_top_k(source, 5, 1 << 20) is not None) == (always != "float32")


def test_positive_entries_are_given_up_on_when_they_are_too_many() -> None:
    source, product = encoder()
    n_positive = int((product > 0).sum())
    assert select_positive(source, n_positive) is not None
    assert select_positive(source, n_positive - 1) is None
