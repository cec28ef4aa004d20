"""The Gated SAE is the paper's, and a soft mask fades its features as it fades those of the other architectures."""

from __future__ import annotations

import pytest
import torch

from scansion.activations import PositionedBatch
from scansion.execution.losses import training_losses
from scansion.masks import SoftMaskConfig
from tests.masks.families import EVERYWHERE, NONE_DEAD, make_sae, some_x


def test_without_a_mask_it_is_the_papers() -> None:
    sae, x = make_sae("gated"), some_x()
    projected = (x - sae.b_dec) @ sae.W_enc
    is_open = projected + sae.b_enc > 0
    magnitudes = (sae.r_mag.exp() * projected + sae.b_mag).relu()
    assert 0.2 < is_open.float().mean() < 0.8
    torch.testing.assert_close(sae.encode(x, EVERYWHERE[:, None]), magnitudes * is_open)


def test_the_gates_bias_learns_from_the_penalty_and_the_auxiliary_loss_alone() -> None:
    sae = make_sae("gated").train()
    losses = training_losses(sae, PositionedBatch(some_x(), EVERYWHERE), NONE_DEAD)
    (from_reconstruction,) = torch.autograd.grad(losses.reconstruction, sae.b_enc, retain_graph=True)
    (from_gates,) = torch.autograd.grad(losses.sparsity + losses.auxiliary, sae.b_enc)
    assert from_reconstruction.abs().max() < 1e-6 < 1e-3 < from_gates.abs().max()


@pytest.mark.parametrize("acts_on", ["forward", "both"])
def test_a_soft_masks_weight_multiplies_the_activation_biases_included(acts_on: str) -> None:
    masked, plain = make_sae("gated", SoftMaskConfig(acts_on=acts_on)).eval(), make_sae("gated").eval()
    plain.load_state_dict({name: masked.state_dict()[name] for name in plain.state_dict()})
    x, at = some_x(), EVERYWHERE[:, None]
    weights = masked.mask(at)
    assert (weights < 0.9).any() and (weights > 0.1).any()
    torch.testing.assert_close(masked.encode(x, at), weights * plain.encode(x, at))
