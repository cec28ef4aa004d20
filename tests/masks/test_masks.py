"""Laws of positional masks: what is outside is exactly zero and sends no gradient; all ones is no mask at all."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from scansion.errors import ConfigError, ShapeError
from scansion.masks import NoMaskConfig, RandomHardMaskConfig, build_mask
from scansion.sae import BatchTopKConfig, JumpReluConfig, ReluConfig, TopKConfig, build_sae

L, D_IN, D_SAE = 12, 6, 30
ARCHITECTURES = {
    "relu": lambda mask: ReluConfig(d_sae=D_SAE, mask=mask),
    "topk": lambda mask: TopKConfig(d_sae=D_SAE, k=5, mask=mask),
    "batch_topk": lambda mask: BatchTopKConfig(d_sae=D_SAE, k=5, mask=mask),
    "jumprelu": lambda mask: JumpReluConfig(d_sae=D_SAE, mask=mask, initial_threshold=0.1, bandwidth=0.5),
}


def make_sae(architecture: str, mask, seed: int = 0):
    return build_sae(ARCHITECTURES[architecture](mask), D_IN, L, torch.Generator().manual_seed(seed))


def some_x(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, L, D_IN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "length", "d_sae"), [(16, 128, 300), (1, 7, 20), (5, 12, 31), (12, 12, 4)])
def test_every_feature_gets_n_positions_and_every_position_an_equal_share(n: int, length: int, d_sae: int) -> None:
    mask = build_mask(RandomHardMaskConfig(positions_per_feature=n), length, d_sae)
    table = mask(torch.arange(length))
    assert set(table.unique().tolist()) <= {0.0, 1.0} and mask.hard
    assert (table.sum(dim=0) == n).all()
    shares = table.sum(dim=1)
    assert shares.max() - shares.min() <= 1


def test_the_default_is_an_eighth_of_the_context_and_seeds_reproduce() -> None:
    tables = [build_mask(RandomHardMaskConfig(seed=s), 128, 50)(torch.arange(128)) for s in (0, 0, 1)]
    assert (tables[0].sum(dim=0) == 16).all()
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_outside_its_mask_a_feature_is_exactly_zero(architecture: str, training: bool) -> None:
    sae = make_sae(architecture, RandomHardMaskConfig(positions_per_feature=3)).train(training)
    acts = sae.encode(some_x())
    allowed = sae.mask.allowed(torch.arange(L)).expand_as(acts)
    assert (acts[~allowed] == 0).all()
    assert (acts[allowed] > 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_encoder_column_gets_exactly_no_gradient_from_positions_outside(architecture: str) -> None:
    sae = make_sae(architecture, RandomHardMaskConfig(positions_per_feature=3)).train()
    for position in range(L):
        sae.zero_grad()
        x = some_x()[:, position : position + 1]
        losses = sae.losses(x, torch.tensor([position]), torch.zeros(D_SAE, dtype=torch.bool))
        (losses.mse + losses.sparsity).backward()
        outside = ~sae.mask.allowed(torch.tensor(position))
        for gradient in (sae.W_enc.grad.T, sae.W_dec.grad, sae.b_enc.grad[:, None]):
            assert (gradient[outside] == 0).all()
        assert (sae.W_dec.grad[~outside] != 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_mask_of_ones_is_no_mask_to_the_last_bit(architecture: str) -> None:
    ones, none = (
        make_sae(architecture, RandomHardMaskConfig(positions_per_feature=L)),
        make_sae(architecture, NoMaskConfig()),
    )
    assert ones.mask(torch.arange(L)).all()
    assert torch.equal(ones.encode(some_x()), none.encode(some_x()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_masked_feature_never_takes_a_place_in_the_top_k(architecture: str) -> None:
    """Each token's code is what the same architecture gives when it only has the permitted features."""
    sae = make_sae(architecture, RandomHardMaskConfig(positions_per_feature=4)).eval()
    x = some_x()
    for position in range(L):
        allowed = sae.mask.allowed(torch.tensor(position))
        pre_acts = (x[:, position] - sae.b_dec) @ sae.W_enc + sae.b_enc
        if architecture == "jumprelu":
            expected = torch.where(pre_acts > sae.threshold, pre_acts, 0.0)[:, allowed]
        else:
            expected = sae.activate(pre_acts[:, allowed])
        torch.testing.assert_close(sae.encode(x)[:, position][:, allowed], expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_explicit_positions_in_any_order_give_what_the_default_gives(architecture: str) -> None:
    sae = make_sae(architecture, RandomHardMaskConfig(positions_per_feature=3)).eval()
    x, order = some_x(), torch.randperm(L, generator=torch.Generator().manual_seed(5))
    default = sae.encode(x)
    torch.testing.assert_close(sae.encode(x[:, order], order), default[:, order])
    torch.testing.assert_close(sae.encode(x.transpose(0, 1), torch.arange(L)[:, None]), default.transpose(0, 1))
    torch.testing.assert_close(sae.encode(x[2, 7], torch.tensor(7)), default[2, 7])


def test_permuting_features_permutes_everything() -> None:
    sae, permuted = (make_sae("topk", RandomHardMaskConfig(positions_per_feature=3)) for _ in range(2))
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        permuted.W_enc.copy_(sae.W_enc[:, order])
        permuted.W_dec.copy_(sae.W_dec[order])
        permuted.mask.table.copy_(sae.mask.table[:, order])
    torch.testing.assert_close(permuted.encode(some_x()), sae.encode(some_x())[..., order])
    torch.testing.assert_close(permuted(some_x()), sae(some_x()))


def test_a_position_past_the_end_is_an_error_that_says_both_numbers() -> None:
    sae = make_sae("topk", RandomHardMaskConfig(positions_per_feature=3))
    with pytest.raises(ShapeError, match="position 12 lies outside this mask of 12 positions"):
        sae.encode(torch.zeros(13, D_IN))
    with pytest.raises(ShapeError, match="position -1 lies outside"):
        sae.encode(torch.zeros(1, D_IN), torch.tensor([-1]))
    make_sae("topk", NoMaskConfig()).encode(torch.zeros(13, D_IN))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions_per_feature is 13, but a context has only 12"):
        build_mask(RandomHardMaskConfig(positions_per_feature=13), L, D_SAE)
    with pytest.raises(ValidationError, match="strictness"):
        RandomHardMaskConfig.model_validate({"strictness": 1})
