"""Banded execution gives the numbers of the dense masked form: losses, gradients, and a whole run."""

from __future__ import annotations

import pytest
import torch

from scansion.execution.blocks import blocks_of
from scansion.masks import BandMaskConfig, build_mask
from tests.execution.curves import curve_of, losses_of
from tests.masks.families import D_SAE, EVERYWHERE, FAMILIES, UNROUTED, L, make_sae, some_x

DEAD = torch.zeros(D_SAE, dtype=torch.bool)
DEAD[1::4] = True


@pytest.mark.parametrize("architecture", UNROUTED)
def test_fifty_steps_follow_the_same_curve(architecture: str) -> None:
    curves = [curve_of(architecture, FAMILIES["bands, shared"], way, DEAD) for way in ("banded", "dense")]
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)


def test_static_slicing_is_one_sae_a_slice() -> None:
    """A slice's losses and gradients are those of a smaller SAE of its own that sees its positions alone."""
    sae = make_sae("topk", BandMaskConfig(preset="static_slicing", count=3)).train()
    x = some_x(n=9)
    losses_of(sae, x, EVERYWHERE, torch.zeros(D_SAE, dtype=torch.bool)).reconstruction.backward()
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


def test_rows_go_to_the_block_of_their_band() -> None:
    mask = build_mask(BandMaskConfig(edges=(0, 4, 8, 12), sizes=(3, 5, 6), shared=1 / 8), 12, 16)
    blocks = blocks_of(mask, torch.tensor([1, 3, 4, 9, 11]))
    shared = slice(0, 2)
    assert [(block.rows, block.pieces) for block in blocks] == [
        (slice(0, 2), (shared, slice(2, 5))), (slice(2, 3), (shared, slice(5, 10))), (slice(3, 5), (shared, slice(10, 16))),
    ]  # fmt: skip
    assert blocks[1].features is not None and blocks[1].features.tolist() == [0, 1, 5, 6, 7, 8, 9]
    again = blocks_of(mask, torch.tensor([0, 5, 8]))
    assert again[1].features is blocks[1].features, "the names of a band's features are the same at every step"
