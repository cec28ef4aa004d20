"""Nested dictionaries: their levels, the loss of each, and the pairs of tokens a T-SAE learns from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from scansion import registry
from scansion.errors import ShapeError
from scansion.masks import BandMaskConfig, NoMaskConfig
from scansion.sae import TSAE, MatryoshkaConfig, TSAEConfig, build_sae, load_sae, parse_sae_config, save_sae
from tests.execution.curves import losses_of
from tests.interop.made import metadata
from tests.masks.families import D_IN, D_SAE, EVERYWHERE, FAMILIES, NONE_DEAD, L, make_sae, some_x

NO_MASK = NoMaskConfig()


def tsae(mask=NO_MASK, **settings):
    config = TSAEConfig(d_sae=D_SAE, k=5, mask=mask, **settings)
    return build_sae(config, D_IN, L, torch.Generator().manual_seed(0)).train()


def test_the_loss_is_the_mean_over_the_nested_dictionaries() -> None:
    sae = make_sae("matryoshka").train()
    x = some_x()
    acts = sae.encode(x, EVERYWHERE[:, None])
    errors = [
        (x - acts[..., :m] @ sae.W_dec[:m] - sae.b_dec).pow(2).sum(dim=-1).mean()
        for m in (D_SAE // 4, D_SAE // 2, D_SAE)
    ]
    losses = losses_of(sae, x, EVERYWHERE, NONE_DEAD)
    torch.testing.assert_close(losses.reconstruction, torch.stack(errors).mean())
    torch.testing.assert_close(losses.mse, errors[-1])


def test_with_bands_every_token_has_nested_dictionaries_of_its_own() -> None:
    mask = BandMaskConfig(count=2, shared=1 / 3)  # 12 shared and 12 for each band
    sae = build_sae(
        MatryoshkaConfig(d_sae=D_SAE, prefixes=(0.5, 0.75, 1.0), mask=mask), D_IN, L, torch.Generator().manual_seed(0)
    )
    assert sae.levels().tolist() == [0] * 12 + 2 * ([1] * 6 + [2] * 6)


def test_prefixes_ascend_and_end_in_everything() -> None:
    for prefixes in ([0.5, 0.25, 1.0], [0.5], [0.0, 1.0], []):
        with pytest.raises(ValidationError, match="should ascend from above 0 and end in 1"):
            MatryoshkaConfig(d_sae=8, prefixes=prefixes)


def test_the_pair_loss_is_info_nce() -> None:
    """All codes alike: nothing tells the right token from the others, and the loss is log N."""
    sae = tsae(contrastive_coefficient=0.5)
    x = some_x()[:1].expand(L, 4, D_IN)[:, :1].expand(L, 4, D_IN)
    with_pairs = losses_of(sae, x, EVERYWHERE, NONE_DEAD, x[1:])
    assert with_pairs.auxiliary.item() == pytest.approx(0.5 * math.log((L - 1) * 4), rel=1e-4)
    with pytest.raises(ShapeError, match="tsae learns from pairs of tokens"):
        losses_of(sae, x, EVERYWHERE, NONE_DEAD)


def test_the_pair_loss_falls_when_adjacent_tokens_are_alike() -> None:
    sae, x = tsae(), some_x()
    alike = losses_of(sae, x, EVERYWHERE, NONE_DEAD, x[1:]).auxiliary
    other = losses_of(sae, x, EVERYWHERE, NONE_DEAD, some_x(seed=9)[1:]).auxiliary
    assert alike < other
    alike.backward()
    assert (sae.W_enc.grad[:, sae.levels() == 0] != 0).any() and (sae.W_enc.grad[:, sae.levels() == 1] == 0).all()


@pytest.mark.parametrize("family", ["bands", "bands, shared", "static_slicing", "uneven bands"])
def test_banded_pairs_are_those_of_the_dense_form(family: str) -> None:
    banded, dense = (tsae(FAMILIES[family]) for _ in range(2))
    x, previous = some_x(n=6)[1:], some_x(seed=5, n=6)[1:-1]
    found = losses_of(banded, x, EVERYWHERE[1:], NONE_DEAD, previous)
    expected = losses_of(dense, x, EVERYWHERE[1:], NONE_DEAD, previous, way="dense")
    for name in ("reconstruction", "auxiliary", "residual"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    for losses in (found, expected):
        (losses.reconstruction + losses.auxiliary).backward()
    for one, other in zip(banded.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_the_former_name_still_loads_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry._say_once.cache_clear()
    sae = build_sae(
        parse_sae_config({"architecture": "temporal", "d_sae": D_SAE, "k": 5}),
        D_IN,
        L,
        torch.Generator().manual_seed(0),
    )
    save_sae(sae, tmp_path / "sae", metadata())
    again, _ = load_sae(tmp_path / "sae")
    assert isinstance(again, TSAE) and again.config == sae.config
    assert again.config.model_dump()["architecture"] == "temporal"  # so that runs and plans keep their digests
    assert capsys.readouterr().err.count("temporal is now called tsae") == 1
