"""Laws of positional masks, for every family and architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from scansion.activations import PositionedBatch
from scansion.errors import ConfigError, ShapeError
from scansion.masks import (
    AdaptiveMask,
    BandMaskConfig,
    NoMaskConfig,
    RandomHardMaskConfig,
    SoftMaskConfig,
    Start,
    build_mask,
    parse_mask_config,
)
from scansion.sae import TopKConfig, build_sae, load_sae, save_sae
from tests.execution.curves import losses_of
from tests.masks.families import (
    ARCHITECTURES,
    D_IN,
    D_SAE,
    EVERYWHERE,
    FAMILIES,
    HARD,
    NONE_DEAD,
    UNROUTED,
    L,
    make_sae,
    some_x,
    with_acts_on,
)
from tests.sae.test_sae import METADATA


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_what_the_family_promises(family: str) -> None:
    mask = build_mask(FAMILIES[family], L, D_SAE)
    weights = mask(EVERYWHERE)
    assert weights.shape == (L, D_SAE) and (weights >= 0).all()
    assert mask.hard == (family in HARD)
    assert (weights[:, : mask.n_shared] == 1).all() and mask.n_shared == round(FAMILIES[family].shared * D_SAE)
    if family == "importance":
        torch.testing.assert_close(weights.mean(dim=0), torch.ones(D_SAE))
    else:
        assert (weights <= 1).all()
    again = build_mask(FAMILIES[family], L, D_SAE)
    assert torch.equal(weights, again(EVERYWHERE)), "the same seed gave another mask"
    assert (weights[EVERYWHERE.flip(0)] == mask(EVERYWHERE.flip(0))).all()


@pytest.mark.parametrize("family", ["random_hard", "soft", "importance", "adaptive"])
def test_another_seed_is_another_mask(family: str) -> None:
    config = FAMILIES[family]
    if family == "adaptive":
        config = config.model_copy(update={"start": Start(kind="random")})  # its own start leaves nothing to chance
    one, other = (build_mask(config.model_copy(update={"seed": s}), L, D_SAE)(EVERYWHERE) for s in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("n", "length", "d_sae"), [(16, 128, 300), (1, 7, 20), (5, 12, 31), (12, 12, 4)])
def test_every_feature_gets_n_positions_and_every_position_an_equal_share(n: int, length: int, d_sae: int) -> None:
    mask = build_mask(RandomHardMaskConfig(positions_per_feature=n), length, d_sae)
    table = mask(torch.arange(length))
    assert (table.sum(dim=0) == n).all()
    shares = table.sum(dim=1)
    assert shares.max() - shares.min() <= 1


def test_the_default_of_a_random_mask_is_an_eighth_of_the_context() -> None:
    assert (build_mask(RandomHardMaskConfig(), 128, 50)(torch.arange(128)).sum(dim=0) == 16).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", HARD)
@pytest.mark.parametrize("training", [True, False])
def test_outside_a_hard_mask_a_feature_is_exactly_zero(architecture: str, family: str, training: bool) -> None:
    sae = make_sae(architecture, FAMILIES[family]).train(training)
    acts = sae.encode(some_x(), EVERYWHERE[:, None])
    allowed = sae.mask.can_fire(EVERYWHERE[:, None]).expand_as(acts)
    assert (acts[~allowed] == 0).all() and (~allowed).any()
    assert (acts[allowed] > 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", HARD)
def test_a_feature_gets_exactly_no_gradient_from_positions_outside(architecture: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).train()
    for position in range(L):
        sae.zero_grad()
        losses = losses_of(sae, some_x()[position][None], torch.tensor([position]), NONE_DEAD)
        (losses.reconstruction + losses.sparsity).backward()
        outside = ~sae.mask.can_fire(torch.tensor(position))
        for gradient in (sae.W_enc.grad.T, sae.W_dec.grad, sae.b_enc.grad[:, None]):
            assert (gradient[outside] == 0).all()
        assert (sae.W_dec.grad[~outside] != 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "ones",
    [
        RandomHardMaskConfig(positions_per_feature=L),
        BandMaskConfig(count=1),
        SoftMaskConfig(shared=0.99999),
        *(FAMILIES[name].model_copy(update={"acts_on": "placebo"}) for name in FAMILIES),
    ],
    ids=["random_hard", "one band", "all shared", *(f"placebo {name}" for name in FAMILIES)],
)
def test_a_mask_of_ones_or_a_placebo_is_no_mask_to_the_last_bit(architecture: str, ones) -> None:
    if getattr(ones, "has_own_bias", False):
        pytest.skip("a decoder bias a band is not a matter of the mask")
    masked, none = make_sae(architecture, ones).train(), make_sae(architecture, NoMaskConfig()).train()
    x = some_x()
    # Without a mask, experts are computed apart, equal to rounding only: see tests/sae/test_switch.py.
    way = "dense" if architecture == "switch" else None
    for sae in (masked, none):
        losses = losses_of(sae, x, EVERYWHERE, NONE_DEAD, way=way)
        (losses.reconstruction + losses.sparsity).backward()
    assert masked.mask.can_fire(EVERYWHERE).all()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(masked, name).grad, getattr(none, name).grad), name
    assert torch.equal(masked.encode(x, EVERYWHERE[:, None]), none.encode(x, EVERYWHERE[:, None]))


@pytest.mark.parametrize("architecture", UNROUTED)
@pytest.mark.parametrize("family", HARD)
def test_a_masked_feature_never_takes_a_place_in_the_top_k(architecture: str, family: str) -> None:
    """Each token's code is what the same architecture gives when it only has the permitted features."""
    sae = make_sae(architecture, FAMILIES[family]).eval()
    x = some_x()
    acts = sae.encode(x, EVERYWHERE[:, None])
    for position in EVERYWHERE:
        allowed = sae.mask.can_fire(position)
        pre_acts = ((x[position] - sae.bias_at(position)) @ sae.W_enc + sae.b_enc)[:, allowed]
        expected = sae.activate(pre_acts, allowed.nonzero().squeeze(1))
        torch.testing.assert_close(acts[position][:, allowed], expected)


# The Gated SAE's magnitudes have a bias of their own, which the mask multiplies as well: see tests/sae/test_gated.py.
@pytest.mark.parametrize("architecture", [name for name in UNROUTED if name != "gated"])
@pytest.mark.parametrize("family", ["soft", "soft, shared", "importance"])
def test_a_soft_mask_multiplies_pre_activations(architecture: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).eval()
    x, weights = some_x(), sae.mask(EVERYWHERE[:, None])
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.encode(x, EVERYWHERE[:, None]), sae.activate(weights * pre_acts))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_explicit_positions_in_any_order_give_what_the_default_gives(architecture: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).eval()
    x, order = some_x().transpose(0, 1), torch.randperm(L, generator=torch.Generator().manual_seed(5))
    default = sae.encode(x, EVERYWHERE)
    torch.testing.assert_close(sae.encode(x[0]), default[0])  # one context, whose positions are 0 .. L-1
    torch.testing.assert_close(sae.encode(x[:, order], order), default[:, order])
    torch.testing.assert_close(sae.encode(x.transpose(0, 1), EVERYWHERE[:, None]), default.transpose(0, 1))
    torch.testing.assert_close(sae.encode(x[2, 7], torch.tensor(7)), default[2, 7])
    torch.testing.assert_close(sae(x[:, order], order), sae(x, EVERYWHERE)[:, order])
    packed = torch.cat([x[0, :5], x[1, :7]])
    positions = torch.cat([torch.arange(5), torch.arange(7)])
    torch.testing.assert_close(sae(packed, positions), torch.cat([sae(x[0])[:5], sae(x[1])[:7]]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_permuting_features_permutes_everything(architecture: str, family: str) -> None:
    sae, permuted = make_sae(architecture, FAMILIES[family]).eval(), make_sae(architecture, FAMILIES[family]).eval()
    mask = sae.mask
    bound = torch.randperm(mask.d_bound, generator=torch.Generator().manual_seed(2))
    order = torch.cat([torch.arange(mask.n_shared), mask.n_shared + bound])
    permuted.permute_features(order)
    with torch.no_grad():
        for name, tensor in permuted.mask.named_parameters():
            tensor.copy_(sae.mask.get_parameter(name)[:, bound])
        if hasattr(mask, "open"):
            permuted.mask.open.copy_(mask.open[:, order])
        if isinstance(mask, AdaptiveMask):
            permuted.mask.end_step(0)
    x = some_x()
    torch.testing.assert_close(
        permuted.encode(x, EVERYWHERE[:, None]), sae.encode(x, EVERYWHERE[:, None])[..., order], atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(permuted(x, EVERYWHERE[:, None]), sae(x, EVERYWHERE[:, None]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_survive_saving_and_move_with_the_sae(family: str, tmp_path: Path) -> None:
    sae = make_sae("topk", FAMILIES[family]).eval()
    with torch.no_grad():
        for tensor in [*sae.mask.parameters()]:
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4)))
        sae.mask.begin_step(70, 100)
        sae.mask.end_step(0)
    save_sae(sae, tmp_path / "sae", METADATA)
    loaded, _ = load_sae(tmp_path / "sae")
    x = some_x()
    assert torch.equal(loaded.mask(EVERYWHERE), sae.mask(EVERYWHERE))
    assert torch.equal(loaded.mask.can_fire(EVERYWHERE), sae.mask.can_fire(EVERYWHERE))
    assert torch.equal(loaded(x, EVERYWHERE[:, None]), sae(x, EVERYWHERE[:, None]))
    moved = sae.to("meta")
    assert {t.device.type for t in [*moved.mask.parameters(), *moved.mask.buffers()]} <= {"meta"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_its_positions_and_a_batched_tensor_without_them_is_refused(architecture, family) -> None:
    sae = make_sae(architecture, FAMILIES[family]).eval()
    x = some_x(n=L)  # square: no axis can be told from the other by its length
    batch = PositionedBatch(x, EVERYWHERE)
    assert torch.equal(sae.encode(batch), sae.encode(x, EVERYWHERE[:, None]))
    assert torch.equal(sae(batch), sae(x, EVERYWHERE[:, None]))
    assert torch.equal(sae.pre_acts(batch.at(EVERYWHERE[2:5])), sae.pre_acts(x[2:5], EVERYWHERE[2:5, None]))
    for read in (sae, sae.encode, sae.pre_acts):
        for unclear in (x, x.transpose(0, 1), x[None], x[0, 0]):
            with pytest.raises(
                ShapeError, match=r"positions are needed: this SAE's .* mask treats positions differently"
            ):
                read(unclear)
        with pytest.raises(ShapeError, match="carries its positions"):
            read(batch, EVERYWHERE[:, None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_needs_positions_only_where_biases_differ(architecture: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).eval()
    acts = sae.encode(PositionedBatch(some_x(), EVERYWHERE))
    if sae.b_dec.ndim == 1:
        assert torch.equal(sae.decode(acts), sae.decode(acts, EVERYWHERE[:, None]))
    else:
        with pytest.raises(ShapeError, match="positions are needed"):
            sae.decode(acts)


@pytest.mark.parametrize("family", ["none", *FAMILIES])
def test_without_a_mask_in_force_positions_may_be_left_out(family: str) -> None:
    mask = NoMaskConfig() if family == "none" else with_acts_on(family, "placebo")
    sae, x = make_sae("topk", mask).eval(), some_x()
    if sae.b_dec.ndim > 1:
        with pytest.raises(ShapeError, match="positions are needed"):
            sae.encode(x)
        return
    assert torch.equal(sae.encode(x), sae.encode(x, EVERYWHERE[:, None]))
    torch.testing.assert_close(sae.encode(x[0, 0]), sae.encode(x)[0, 0])


def test_a_new_banded_sae_fires_in_every_band_of_a_store(store) -> None:
    sae = build_sae(
        TopKConfig(d_sae=64, k=4, mask=BandMaskConfig(count=4)), store.d_in, store.n_positions, torch.Generator()
    )
    fired = (sae.eval().encode(store.contexts(0, 16)) > 0).any(dim=1)
    blocks = torch.arange(64) // 16
    for position in range(store.n_positions):
        where = blocks[fired[position]].unique()
        assert len(where) == 0 or where.tolist() == [int(position * 4 // store.n_positions)]
    assert len(blocks[fired.any(dim=0)].unique()) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_position_past_the_end_is_an_error_that_says_both_numbers(family: str) -> None:
    sae = make_sae("topk", FAMILIES[family])
    with pytest.raises(ShapeError, match="position 12 is outside this mask of 12 positions"):
        sae.encode(torch.zeros(13, D_IN))
    with pytest.raises(ShapeError, match="position -1 is outside"):
        sae.encode(torch.zeros(1, D_IN), torch.tensor([-1]))


def test_without_a_mask_any_position_will_do() -> None:
    make_sae("topk", NoMaskConfig()).encode(torch.zeros(13, D_IN))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("beyond", "meant"), [("clamp", [11, 11, 11, 3]), ("tile", [0, 1, 11, 3])])
def test_a_mask_can_say_what_lies_beyond_its_end(family: str, beyond: str, meant: list[int]) -> None:
    config = FAMILIES[family].model_copy(update={"beyond": beyond})
    sae = make_sae("topk", config).eval()
    asked, x = torch.tensor([12, 13, 11, 3]), some_x()[:4, 0]
    assert torch.equal(sae(x, asked), sae(x, torch.tensor(meant)))
    with pytest.raises(ShapeError, match="position -1"):
        sae.mask(torch.tensor([-1]))


@pytest.mark.parametrize("architecture", UNROUTED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lifted_mask_is_no_mask_and_shares_the_weights(architecture: str, family: str) -> None:
    sae = make_sae(architecture, FAMILIES[family]).eval()
    lifted, x = sae.lifted(), some_x()
    pre_acts = (x - sae.bias_at(EVERYWHERE[:, None])) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(lifted.encode(x, EVERYWHERE[:, None]), sae.activate(pre_acts))
    assert lifted.W_dec is sae.W_dec and type(sae.mask) is not type(lifted.mask)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions_per_feature is 13, but a context has only 12"):
        build_mask(RandomHardMaskConfig(positions_per_feature=13), L, D_SAE)
    with pytest.raises(ConfigError, match="positions_per_feature is 13"):
        build_mask(parse_mask_config({"family": "adaptive", "positions_per_feature": 13}), L, D_SAE)
    with pytest.raises(ConfigError, match=r"should ascend from 0 to 12, the context length, but are \[0, 8, 4, 12\]"):
        build_mask(BandMaskConfig(edges=(0, 8, 4, 12)), L, D_SAE)
    with pytest.raises(ConfigError, match=r"but are \[0, 4, 13\]"):
        build_mask(BandMaskConfig(edges=(0, 4, 13)), L, D_SAE)
    with pytest.raises(ConfigError, match="36 bound features do not divide evenly among 5 bands"):
        build_mask(BandMaskConfig(count=5), L, D_SAE)
    with pytest.raises(ConfigError, match="should be 2 numbers that add up to the 36 bound features"):
        build_mask(BandMaskConfig(count=2, sizes=(20, 20)), L, D_SAE)
    for wrong, message in [
        ({"family": "random_hard", "strictness": 1}, "strictness"),
        ({"family": "bands", "edges": [0, 12], "count": 1}, "both set the bands"),
        ({"family": "soft", "start": {"low": 0.8, "high": 0.2}}, "is above high"),
        ({"family": "soft", "start": {"kind": "random", "sae": "x"}}, "no other kind takes it"),
        ({"family": "soft", "temperature": {"start": 1, "end": 0, "shape": "geometric"}}, "cannot start or end at 0"),
    ]:
        with pytest.raises(ValidationError, match=message):
            parse_mask_config(wrong)
    with pytest.raises(
        ConfigError, match="no mask family is called 'stripes'; there are adaptive, bands, importance, none"
    ):
        parse_mask_config({"family": "stripes"})
