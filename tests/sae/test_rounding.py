"""A mask rounded to bands: what is already banded is unchanged, and what is lost is said."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import ConfigError
from scansion.masks import BandMaskConfig, RandomHardMaskConfig, SoftMaskConfig
from scansion.sae.rounding import round_to_bands
from tests.masks.families import ARCHITECTURES, D_SAE, EVERYWHERE, L, make_sae, some_x


def soft_sae(architecture: str, weights: torch.Tensor):
    sae = make_sae(architecture, SoftMaskConfig()).eval()
    with torch.no_grad():
        sae.mask.logits.copy_(weights.logit())
    return sae


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_soft_mask_that_is_banded_already_loses_nothing(architecture: str) -> None:
    """Weight 0.6 in one band, 0 elsewhere: the hard mask with the weight folded in gives the same activations."""
    owner = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1)) % 4
    weights = torch.where(EVERYWHERE[:, None] // 3 == owner, 0.6, 1e-30)
    weights[:, owner == 3] = 0.6  # these fire everywhere
    sae = soft_sae(architecture, weights)
    if architecture == "gated":
        sae.b_mag.data.zero_()  # it is added after the weight, which a gate of weight 1e-30 shows
    rounded = round_to_bands(sae, n_bands=4)
    assert rounded.mass_lost < 1e-6
    assert rounded.sae.mask.n_shared == (owner == 3).sum() and rounded.sae.mask.gate.bands is not None
    x, places = some_x(), EVERYWHERE[:, None]
    torch.testing.assert_close(rounded.sae.encode(x, places), sae.encode(x, places)[..., rounded.order])
    torch.testing.assert_close(rounded.sae(x, places), sae(x, places))


def test_the_mass_outside_the_band_is_what_is_lost() -> None:
    weights = torch.full((L, D_SAE), 0.1)
    weights[:6, : D_SAE // 2] = 0.9
    weights[6:, D_SAE // 2 :] = 0.9
    rounded = round_to_bands(soft_sae("topk", weights), n_bands=2)
    assert rounded.mass_lost == pytest.approx(0.1, abs=1e-5)
    assert torch.equal(rounded.order, torch.arange(D_SAE))
    everywhere = round_to_bands(soft_sae("topk", weights), n_bands=2, keep=0.89)
    assert everywhere.sae.mask.n_shared == 0
    with pytest.raises(ConfigError, match="no band of 2 holds 95% of any feature's weight"):
        round_to_bands(soft_sae("topk", weights), n_bands=2, keep=0.95)


def test_a_hard_random_mask_is_rounded_too() -> None:
    sae = make_sae("topk", RandomHardMaskConfig(positions_per_feature=3)).eval()
    rounded = round_to_bands(sae, n_bands=2)
    fits = sae.mask.open[:, rounded.order].float()
    kept = (fits * rounded.sae.mask.open).sum() / fits.sum()
    assert rounded.mass_lost == pytest.approx(1 - kept.item())


@pytest.mark.parametrize(
    "mask",
    [
        BandMaskConfig(preset="static_slicing", count=3),
        SoftMaskConfig(acts_on="placebo"),
        SoftMaskConfig(acts_on="gradient"),
    ],
)
def test_what_cannot_be_rounded_is_refused(mask) -> None:
    with pytest.raises(ConfigError, match=r"cannot be rounded to bands|one of hard bands already"):
        round_to_bands(make_sae("topk", mask), n_bands=2)
    with pytest.raises(ConfigError, match=r"keep should be in \(0, 1\]"):
        round_to_bands(make_sae("topk", SoftMaskConfig()), n_bands=2, keep=0)
