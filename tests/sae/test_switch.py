"""The Switch SAE: a token's expert is a TopK SAE of its own, and experts are found, balanced and computed apart."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from scansion.sae import SwitchConfig, SwitchSAE, TopKConfig, build_sae
from tests.execution.curves import losses_of
from tests.masks.families import D_IN, D_SAE, EVERYWHERE, NONE_DEAD, L, make_sae, some_x


def test_a_token_is_coded_by_its_most_probable_expert_and_scaled_by_its_probability() -> None:
    sae = make_sae("switch").eval()
    x = some_x()
    acts, probabilities = sae.encode(x, EVERYWHERE[:, None]), sae.route(x)
    assert len(probabilities.argmax(dim=-1).unique()) == 3
    for expert in range(3):
        own = sae.expert == expert
        alone = build_sae(TopKConfig(d_sae=int(own.sum()), k=5), D_IN, L, torch.Generator())
        with torch.no_grad():
            alone.W_enc.copy_(sae.W_enc[:, own])
            alone.b_enc.copy_(sae.b_enc[own])
            alone.b_dec.copy_(sae.b_dec)
        here = probabilities.argmax(dim=-1) == expert
        expected = alone.encode(x, EVERYWHERE[:, None]) * probabilities[..., expert, None]
        torch.testing.assert_close(acts[here][:, own], expected[here])
        assert (acts[here][:, ~own] == 0).all()


@pytest.mark.parametrize("one_expert_empty", [False, True])
def test_experts_computed_apart_give_the_losses_and_gradients_of_the_dense_form(one_expert_empty: bool) -> None:
    apart, dense = (make_sae("switch").train() for _ in range(2))
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(4))
    x, dead = some_x(n=7), NONE_DEAD.clone()
    dead[1::4] = True
    for sae in (apart, dense):
        sae.permute_features(order)
        if one_expert_empty:
            with torch.no_grad():
                sae.router[:, 0] = sae.router[:, 1]  # the second is never above the first
    found, expected = losses_of(apart, x, EVERYWHERE, dead), losses_of(dense, x, EVERYWHERE, dead, way="dense")
    assert torch.equal(found.fired, expected.fired)
    for name in ("reconstruction", "auxiliary", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    for losses in (found, expected):
        (losses.reconstruction + losses.auxiliary).backward()
    for one, other in zip(apart.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_the_balance_loss_is_its_coefficient_when_every_expert_has_its_share() -> None:
    sae = make_sae("switch")
    assert isinstance(sae, SwitchSAE)
    with torch.no_grad():
        sae.router.zero_()
        sae.router[:3, :3] = 100 * torch.eye(3)
        sae.b_router.zero_()
    balanced = torch.eye(D_IN)[:3].expand(L, 3, D_IN)
    losses = losses_of(sae, balanced, EVERYWHERE, NONE_DEAD)
    assert losses.auxiliary.item() == pytest.approx(3.0, rel=1e-4)
    losses = losses_of(sae, balanced[:, :1], EVERYWHERE, NONE_DEAD)
    assert losses.auxiliary.item() == pytest.approx(9.0, rel=1e-4)  # one expert has everything


def test_experts_divide_the_features() -> None:
    with pytest.raises(ValidationError, match="5 experts cannot divide 36 features equally"):
        SwitchConfig(d_sae=D_SAE, n_experts=5)
