"""Where a mask acts: each way against autograd on a graph in which the mask is written out."""

from __future__ import annotations

import pytest
import torch

from scansion.sae import SAE
from tests.execution.curves import losses_of
from tests.masks.families import ARCHITECTURES, EVERYWHERE, FAMILIES, NONE_DEAD, make_sae, some_x, with_acts_on

SOME_DEAD = NONE_DEAD.clone()
SOME_DEAD[::5] = True
FAMILIES_TO_GATE = ["random_hard", "bands, shared", "static_slicing", "soft", "importance", "adaptive"]
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def gradients(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


def total(losses) -> torch.Tensor:
    return losses.reconstruction + losses.sparsity + losses.auxiliary


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES_TO_GATE)
def test_gradient_leaves_the_forward_pass_alone(architecture: str, family: str) -> None:
    gated, plain = make_sae(architecture, with_acts_on(family, "gradient")), make_sae(architecture)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            gated.get_parameter(name).copy_(parameter)  # a decoder bias a band: the same for all
    places = EVERYWHERE[:, None]
    assert torch.equal(gated.encode(some_x(), places), plain.encode(some_x(), places))
    assert torch.equal(gated(some_x(), places), plain(some_x(), places))


@pytest.mark.parametrize("architecture", ["relu", "topk", "batch_topk"])
@pytest.mark.parametrize("family", FAMILIES_TO_GATE)
def test_gradient_is_autograd_on_a_graph_masked_by_hand(architecture: str, family: str) -> None:
    """Each token's own copy of every feature's weights, detached where the mask is 0, scaled where it is between."""
    sae = make_sae(architecture, with_acts_on(family, "gradient")).train()
    x = some_x()
    losses = losses_of(sae, x, EVERYWHERE, NONE_DEAD)
    (losses.reconstruction + losses.sparsity).backward()
    found = gradients(sae)

    weights = sae.mask(EVERYWHERE).detach()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae, name).detach().clone().requires_grad_() for name in WEIGHTS)
    mse, sparsity = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        acts = sae.encode(x, EVERYWHERE[:, None])  # which features win, for architectures that select
    for position in EVERYWHERE:
        w = weights[position]
        bias = b_dec if b_dec.ndim == 1 else b_dec[sae.mask.band_at(position)]

        def partly(tensor: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return w * tensor + (1 - w) * tensor.detach()

        # The gate also stands between a feature and the decoder bias that its encoder subtracts.
        centred = x[position][:, :, None] - partly(bias[:, None].expand(-1, len(w)), w)
        pre = (centred * partly(W_enc, w)).sum(dim=1) + partly(b_enc, w)
        act = torch.where(acts[position] > 0, pre, torch.zeros(()))
        x_hat = act @ partly(W_dec.T, w).T + bias
        mse = mse + (x[position] - x_hat).pow(2).sum()
        sparsity = sparsity + act.sum()
    n = x.shape[0] * x.shape[1]
    coefficient = getattr(sae.config, "l1_coefficient", 0.0)
    (mse / n + coefficient * sparsity / n).backward()
    for name, expected in zip(WEIGHTS, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(found[name], expected.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("acts_on", ["gradient", "both"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", ["random_hard", "bands, shared"])
def test_positions_not_permitted_send_exactly_nothing(acts_on: str, architecture: str, family: str) -> None:
    sae = make_sae(architecture, with_acts_on(family, acts_on)).train()
    for position in EVERYWHERE:
        sae.zero_grad()
        total(losses_of(sae, some_x()[position][None], position[None], SOME_DEAD)).backward()
        outside = sae.mask(position) == 0
        for parameter, axis in sae.feature_axes():
            assert (parameter.grad.index_select(axis, outside.nonzero().squeeze(1)) == 0).all()
        assert (sae.W_dec.grad[~outside] != 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", ["random_hard", "random_hard, shared", "bands, shared", "static_slicing"])
@pytest.mark.parametrize("acts_on", ["both", "straight_through"])
def test_on_a_hard_mask_every_way_that_acts_forward_is_the_same(architecture: str, family: str, acts_on: str) -> None:
    one = make_sae(architecture, with_acts_on(family, "forward")).train()
    other = make_sae(architecture, with_acts_on(family, acts_on)).train()
    for sae in (one, other):
        total(losses_of(sae, some_x(), EVERYWHERE, SOME_DEAD, way="dense")).backward()
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradient, gradients(other)[name])


@pytest.mark.parametrize("architecture", ["relu", "topk", "batch_topk"])
@pytest.mark.parametrize("family", ["soft", "adaptive", "adaptive, shared", "importance"])
def test_straight_through_is_hard_forward_and_soft_backward(architecture: str, family: str) -> None:
    """Features learn as under the hard mask; the mask as if it multiplied what each feature would do if let in."""
    sae = make_sae(architecture, with_acts_on(family, "straight_through")).train()
    with torch.no_grad():
        sae.mask.logits.add_(torch.randn(sae.mask.logits.shape, generator=torch.Generator().manual_seed(8)))
        sae.mask.end_step(0)
    x, places = some_x(), EVERYWHERE[:, None]
    opened = sae.mask.is_open(places)
    assert opened.any() and not opened.all()

    def pre_acts() -> torch.Tensor:
        return (x - sae.b_dec) @ sae.W_enc + sae.b_enc

    hard = sae.activate(pre_acts().masked_fill(~opened, -torch.inf))
    assert torch.equal(sae.encode(x, places), hard)
    assert (sae.encode(x, places)[~opened.expand_as(hard)] == 0).all()

    target = torch.randn(hard.shape, generator=torch.Generator().manual_seed(9))
    (sae.encode(x, places) * target).sum().backward()
    found = {name: gradient.clone() for name, gradient in gradients(sae).items()}
    sae.zero_grad()
    let_in = torch.where(hard > 0, hard, sae.activate(pre_acts())).detach()
    (hard * target).sum().backward()
    (sae.mask(places) * let_in * target).sum().backward()
    assert set(found) == set(gradients(sae)) and "mask.logits" in found
    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(found[name], gradient)
    closed = ~opened[:, 0, sae.mask.n_shared :]
    assert (found["mask.logits"][closed] != 0).any(), "a closed position could never open again"


@pytest.mark.parametrize("family", ["random_hard", "soft", "bands"])
def test_a_placebo_is_drawn_and_measured(family: str) -> None:
    mask, applied = (make_sae("topk", with_acts_on(family, how)).mask for how in ("placebo", "forward"))
    assert torch.equal(mask(EVERYWHERE), applied(EVERYWHERE))
    assert mask.can_fire(EVERYWHERE).all() and mask.gate.bands is None


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_needs_no_gradient(family: str) -> None:
    sae = make_sae("topk", FAMILIES[family]).eval()
    with torch.no_grad():
        without = sae(some_x(), EVERYWHERE[:, None])
    torch.testing.assert_close(without, sae(some_x(), EVERYWHERE[:, None]))
