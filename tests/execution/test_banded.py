"""Banded execution gives the numbers of the dense masked form: losses, gradients, and a whole run."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import rows_of_bands
from scansion.masks import BandMaskConfig
from tests.execution.curves import curve_of
from tests.masks.families import ARCHITECTURES, BANDED, D_SAE, EVERYWHERE, FAMILIES, L, make_sae, some_x

DEAD = torch.zeros(D_SAE, dtype=torch.bool)
DEAD[1::4] = True


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", BANDED)
@pytest.mark.parametrize("positions", [EVERYWHERE, EVERYWHERE[1:], EVERYWHERE[5:8]], ids=["all", "not 0", "few"])
def test_losses_and_gradients_are_those_of_the_dense_form(architecture: str, family: str, positions) -> None:
    banded, dense = (make_sae(architecture, FAMILIES[family]).train() for _ in range(2))
    x = some_x(n=7)[positions]
    found = banded.losses(x, positions, DEAD)
    expected = dense.dense_losses(x, positions, DEAD)
    for name in ("reconstruction", "sparsity", "auxiliary", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(found.fired, expected.fired)
    for losses in (found, expected):
        (losses.reconstruction + losses.sparsity + losses.auxiliary).backward()
    for (name, parameter), (_, reference) in zip(banded.named_parameters(), dense.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fifty_steps_follow_the_same_curve(architecture: str) -> None:
    curves = [curve_of(architecture, FAMILIES["bands, shared"], way, DEAD) for way in ("losses", "dense_losses")]
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)


def test_static_slicing_is_one_sae_a_slice() -> None:
    """A slice's losses and gradients are those of a smaller SAE of its own that sees its positions alone."""
    sae = make_sae("topk", BandMaskConfig(preset="static_slicing", count=3)).train()
    x = some_x(n=9)
    sae.losses(x, EVERYWHERE, torch.zeros(D_SAE, dtype=torch.bool)).reconstruction.backward()
    for index in range(3):
        block, rows = slice(index * 12, index * 12 + 12), slice(index * 4, index * 4 + 4)
        W_enc, b_enc, W_dec = (
            t.detach().clone().requires_grad_() for t in (sae.W_enc[:, block], sae.b_enc[block], sae.W_dec[block])
        )
        bias = sae.b_dec[index].detach().clone().requires_grad_()
        pre = (x[rows] - bias) @ W_enc + b_enc
        kept = pre.topk(5, dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())
        ((x[rows] - acts @ W_dec - bias).pow(2).sum() / (L * 9)).backward()
        torch.testing.assert_close(sae.W_enc.grad[:, block], W_enc.grad)
        torch.testing.assert_close(sae.W_dec.grad[block], W_dec.grad)
        torch.testing.assert_close(sae.b_dec.grad[index], bias.grad)


def test_rows_go_to_the_band_of_their_position() -> None:
    bands = rows_of_bands(torch.tensor([1, 3, 4, 9, 11]), (0, 4, 8, 12), 2, (3, 5, 6))
    assert [(b.rows, b.block) for b in bands] == [
        (slice(0, 2), slice(2, 5)), (slice(2, 3), slice(5, 10)), (slice(3, 5), slice(10, 16)),
    ]  # fmt: skip
    assert bands[1].features(2).tolist() == [0, 1, 5, 6, 7, 8, 9]
