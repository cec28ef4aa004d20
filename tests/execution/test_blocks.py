"""Blocks in numbers small enough to work out by hand, and the dense way against the formulas it stands for."""

from __future__ import annotations

import pytest
import torch

from scansion.activations import PositionedBatch
from scansion.execution.blocks import Block, blocks_of, whole_block
from scansion.execution.reference import dense_forward
from scansion.masks import BandMaskConfig, NoMaskConfig, RandomHardMaskConfig, SoftMaskConfig, build_mask
from scansion.sae import ReluConfig, build_sae
from tests.masks.families import D_IN, D_SAE, EVERYWHERE, L, make_sae, some_x, with_acts_on

UNEVEN = BandMaskConfig(edges=(0, 2, 3, 8), sizes=(1, 2, 3), shared=0.25)
POSITIONS = torch.tensor([0, 1, 4, 7])


def rows(block: Block) -> tuple[int, int]:
    return block.rows.start, block.rows.stop


def test_the_whole_is_one_block() -> None:
    block = whole_block(5, 7)
    assert rows(block) == (0, 5) and block.pieces == (slice(0, 7),)
    assert (block.width, block.n_rows, block.bias) == (7, 5, 0)
    assert block.features is None and block.closed is None and block.weights is None
    values, chosen = torch.arange(7), torch.arange(7) % 3 == 0
    assert block.of_features(values) is values and block.named(values) is values
    assert block.columns_of(chosen).tolist() == [0, 3, 6]


@pytest.mark.parametrize("own_bias", [True, False])
def test_a_band_has_the_shared_features_and_its_own(own_bias: bool) -> None:
    first, empty, last = blocks_of(build_mask(UNEVEN.model_copy(update={"own_bias": own_bias}), 8, 8), POSITIONS)
    assert [rows(block) for block in (first, empty, last)] == [(0, 2), (2, 2), (2, 4)]
    assert [block.n_rows for block in (first, empty, last)] == [2, 0, 2]
    assert [block.width for block in (first, empty, last)] == [3, 4, 5]
    assert [block.features.tolist() for block in (first, empty, last)] == [[0, 1, 2], [0, 1, 3, 4], [0, 1, 5, 6, 7]]
    assert [block.bias for block in (first, empty, last)] == ([0, 1, 2] if own_bias else [0, 0, 0])
    assert all(block.closed is None and block.weights is None for block in (first, empty, last))
    assert list(last.columns()) == [(slice(0, 2), slice(0, 2)), (slice(5, 8), slice(2, 5))]
    assert last.of_features(10 * torch.arange(8)).tolist() == [0, 10, 50, 60, 70]
    assert last.named(torch.tensor([0, 2, 4])).tolist() == [0, 5, 7]
    assert last.columns_of(torch.tensor([0, 1, 1, 0, 0, 0, 1, 1], dtype=torch.bool)).tolist() == [1, 3, 4]


def test_bands_that_share_nothing_have_one_piece() -> None:
    blocks = blocks_of(build_mask(BandMaskConfig(count=2), 8, 8), POSITIONS)
    assert [block.pieces for block in blocks] == [(slice(0, 4),), (slice(4, 8),)]
    assert [rows(block) for block in blocks] == [(0, 2), (2, 4)]
    own = blocks_of(build_mask(BandMaskConfig(count=2, own_bias=True), 8, 8), POSITIONS)
    assert [block.bias for block in own] == [0, 1]


def test_the_columns_of_any_pieces_follow_one_another() -> None:
    block = Block(slice(0, 1), (slice(1, 3), slice(5, 6), slice(7, 9)))
    assert [columns for _, columns in block.columns()] == [slice(0, 2), slice(2, 3), slice(3, 5)]


@pytest.mark.parametrize(
    ("acts_on", "weighted", "closing"),
    [("forward", True, False), ("straight_through", True, True), ("placebo", False, False)],
)
def test_a_mask_with_weights_gives_them_to_its_block(acts_on: str, weighted: bool, closing: bool) -> None:
    mask = build_mask(SoftMaskConfig(acts_on=acts_on), 8, 8)
    (block,) = blocks_of(mask, POSITIONS)
    assert rows(block) == (0, 4) and block.features is None
    assert (block.weights is not None, block.closed is not None) == (weighted, closing)
    if weighted:
        assert torch.equal(block.weights, mask(POSITIONS)) and block.weights.requires_grad
    if closing:
        assert torch.equal(block.closed, mask(POSITIONS) < 0.5)


def test_a_hard_mask_without_bands_closes_features() -> None:
    mask = build_mask(RandomHardMaskConfig(positions_per_feature=2), 8, 8)
    (block,) = blocks_of(mask, POSITIONS)
    assert torch.equal(block.closed, ~mask.is_open(POSITIONS)) and block.weights is None
    (block,) = blocks_of(build_mask(NoMaskConfig(), 8, 8), POSITIONS)
    assert block.closed is None and block.weights is None


def test_a_mask_that_acts_on_nothing_still_has_its_decoder_biases() -> None:
    """A placebo's bands are no bands of the gate, but each position keeps the bias of its band."""
    blocks = blocks_of(build_mask(UNEVEN.model_copy(update={"own_bias": True, "acts_on": "placebo"}), 8, 8), POSITIONS)
    assert [(rows(block), block.bias, block.width) for block in blocks] == [((0, 2), 0, 8), ((2, 4), 2, 8)]


def test_a_part_of_a_block_has_its_rows_of_everything() -> None:
    closed, weights = torch.arange(12).view(6, 2) % 3 == 0, torch.arange(12.0).view(6, 2)
    block = Block(slice(3, 9), (slice(1, 3),), torch.tensor([1, 2]), closed, 4, weights)
    part = block.at(slice(5, 7))
    assert rows(part) == (5, 7) and part.bias == 4 and part.features is block.features
    assert torch.equal(part.closed, closed[2:4]) and torch.equal(part.weights, weights[2:4])
    assert [rows(each) for each in block.split(4)] == [(3, 7), (7, 9)]
    assert [rows(each) for each in block.split(3)] == [(3, 6), (6, 9)]
    assert torch.equal(torch.cat([each.weights for each in block.split(4)]), weights)
    bare = whole_block(4, 3).at(slice(1, 2))
    assert bare.closed is None and bare.weights is None and rows(bare) == (1, 2)


@pytest.mark.parametrize("acts_on", ["forward", "both", "gradient", "straight_through", "placebo"])
def test_the_dense_way_is_encode_mask_activate_decode(acts_on: str) -> None:
    sae = make_sae("relu", with_acts_on("soft", acts_on)).train()
    batch = PositionedBatch(some_x(), EVERYWHERE)
    forward = dense_forward(sae, batch)
    weights = sae.mask(EVERYWHERE[:, None])
    pre_acts = (batch.x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if acts_on == "straight_through":
        acts = torch.where(weights >= 0.5, pre_acts, 0.0).relu()
    else:
        acts = (pre_acts if acts_on in ("gradient", "placebo") else pre_acts * weights).relu()
    torch.testing.assert_close(forward.residual, batch.x - acts @ sae.W_dec - sae.b_dec)
    (part,) = forward.parts
    assert part.block.n_rows == L and part.block.width == D_SAE
    torch.testing.assert_close(part.acts, acts)
    assert torch.equal(forward.fired, (acts > 0).sum(dim=(0, 1)))
    assert forward.x is batch.x and forward.positions is batch.positions
    gated = acts_on in ("both", "gradient")
    assert (forward.decoder_weights is not None) == gated
    if gated:
        assert torch.equal(forward.decoder_weights, weights)
    # A token's gradient to a decoder row counts as much as the mask's weight, where the mask gates gradients.
    to_residual = torch.randn(forward.residual.shape, generator=torch.Generator().manual_seed(3))
    forward.residual.backward(to_residual)
    expected = -((acts * weights if gated else acts).flatten(0, 1).T @ to_residual.flatten(0, 1))
    torch.testing.assert_close(sae.W_dec.grad, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_dense_way_adds_the_bias_of_each_position() -> None:
    config = ReluConfig(d_sae=D_SAE, mask=BandMaskConfig(preset="static_slicing", count=4))
    sae = build_sae(config, D_IN, L, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)  # nothing fires
        sae.b_dec.copy_(torch.arange(4.0)[:, None].expand(4, D_IN))
    batch = PositionedBatch(some_x(), EVERYWHERE)
    forward = dense_forward(sae, batch)
    torch.testing.assert_close(
        batch.x - forward.residual, (EVERYWHERE // 3)[:, None, None].expand(batch.x.shape).float()
    )
    assert not forward.fired.any()
