"""The ReLU form in five products gives the numbers of the dense form, whatever the mask and however it is cut."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import backends
from tests.execution.curves import curve_of, losses_of, require_same_as_dense
from tests.execution.test_sparse import MASKS
from tests.masks.families import D_SAE, EVERYWHERE, NONE_DEAD, make_sae, some_x


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", [EVERYWHERE, EVERYWHERE[5:8]], ids=["all", "few"])
@pytest.mark.parametrize("chunk", [1, 3 * 7 * D_SAE, 1 << 20], ids=["single positions", "several", "whole"])
def test_losses_and_gradients_are_those_of_the_dense_form(mask, positions, chunk, monkeypatch) -> None:
    monkeypatch.setattr(backends, "CHUNK", chunk)
    fast, dense = (make_sae("relu", MASKS[mask]).train() for _ in range(2))
    x = some_x(n=7)[positions]
    found = losses_of(fast, x, positions, NONE_DEAD, way="fused")
    require_same_as_dense(found, losses_of(dense, x, positions, NONE_DEAD, way="dense"), fast, dense)


@pytest.mark.parametrize("mask", ["none", "random_hard", "bands, shared"])
def test_fifty_steps_follow_the_same_curve(mask: str) -> None:
    curves = [curve_of("relu", MASKS[mask], way, NONE_DEAD) for way in ("fused", "dense")]
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)


def test_tokens_need_not_lie_together_in_memory() -> None:
    sae, x = make_sae("relu").train(), some_x(n=7)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    found, expected = (losses_of(sae, tokens, EVERYWHERE, NONE_DEAD, way="fused").residual for tokens in (turned, x))
    torch.testing.assert_close(found, expected)
