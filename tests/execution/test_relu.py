"""The ReLU form in five products gives the numbers of the dense form, whatever the mask and however it is cut."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import fused_relu as relu
from scansion.sae.architectures.relu import ReluSAE
from tests.execution.curves import curve_of
from tests.execution.test_sparse import MASKS
from tests.masks.families import D_SAE, EVERYWHERE, NONE_DEAD, make_sae, some_x


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", [EVERYWHERE, EVERYWHERE[5:8]], ids=["all", "few"])
@pytest.mark.parametrize("chunk", [1, 3 * 7 * D_SAE, 1 << 20], ids=["single positions", "several", "whole"])
def test_losses_and_gradients_are_those_of_the_dense_form(mask, positions, chunk, monkeypatch) -> None:
    monkeypatch.setattr(relu, "CHUNK", chunk)
    fast, dense = (make_sae("relu", MASKS[mask]).train() for _ in range(2))
    assert isinstance(fast, ReluSAE)
    x = some_x(n=7)[positions]
    found = fast.losses_of(fast.fused_forward(x, positions), NONE_DEAD)
    expected = dense.dense_losses(x, positions, NONE_DEAD)
    for name in ("reconstruction", "sparsity", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(found.fired, expected.fired)
    for losses in (found, expected):
        (losses.reconstruction + 3 * losses.sparsity).backward()
    for (name, parameter), (_, reference) in zip(fast.named_parameters(), dense.named_parameters(), strict=True):
        assert (parameter.grad is None) == (reference.grad is None)
        if reference.grad is not None:
            torch.testing.assert_close(
                parameter.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("mask", ["none", "random_hard", "bands, shared"])
def test_fifty_steps_follow_the_same_curve(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scansion.sae.base.sparse_forward", lambda *_: None)
    curves = [curve_of("relu", MASKS[mask], way, NONE_DEAD) for way in ("losses", "dense_losses")]
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)


def test_tokens_need_not_lie_together_in_memory() -> None:
    sae, x = make_sae("relu").train(), some_x(n=7)
    assert isinstance(sae, ReluSAE)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    found, expected = (sae.fused_forward(tokens, EVERYWHERE).residual for tokens in (turned, x))
    torch.testing.assert_close(found, expected)
