"""A mask family of one's own works like a built-in one, or is refused with a message that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from scansion.errors import ConfigError, TrainingError
from scansion.evals.base import LoadedSAE
from scansion.evals.position.states import acts_in_forward, measured_mask, rebuild_start, weights_at
from scansion.flags import parse_mask
from scansion.listing import lines, settings_of
from scansion.masks import (
    MASKS,
    BandMaskConfig,
    HardMask,
    LearntConfig,
    LearntMask,
    MaskConfig,
    NoMaskConfig,
    PositionalMask,
    Start,
    build_mask,
    parse_mask_config,
    register_mask,
)
from scansion.sae import TopKConfig, build_sae, load_sae, save_sae
from scansion.sae.rounding import round_to_bands
from scansion.study.plan import reseeded
from scansion.training import TrainingConfig, TrainingRun, train

L, D_SAE = 8, 24


class LateMaskConfig(MaskConfig, frozen=True):
    """A plain config whose ``start`` is a position and not a :class:`Start`."""

    family: Literal["late"] = "late"
    start: int = 2


class FadeMaskConfig(MaskConfig, frozen=True):
    family: Literal["fade"] = "fade"


class TiltMaskConfig(LearntConfig, frozen=True):
    family: Literal["tilt"] = "tilt"


@pytest.fixture(autouse=True)
def own_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three families, registered for one test."""
    monkeypatch.setattr(MASKS, "_items", dict(MASKS._items))

    @register_mask(LateMaskConfig)
    class LateMask(HardMask):
        """1 from a feature's own first position on."""

        def __init__(self, config: LateMaskConfig, n_positions: int, d_sae: int) -> None:
            first = config.start + torch.arange(d_sae) % (n_positions - config.start)
            super().__init__(config, n_positions, d_sae, torch.arange(n_positions)[:, None] >= first)

    @register_mask(FadeMaskConfig)
    class FadeMask(PositionalMask):
        """Weights that fall with position and are not learnt."""

        def bound_weights(self) -> torch.Tensor:
            return torch.linspace(1, 0.25, self.n_positions)[:, None].expand(-1, self.d_bound)

    @register_mask(TiltMaskConfig)
    class TiltMask(LearntMask):
        """Learnt weights."""

        def bound_weights(self) -> torch.Tensor:
            return (self.logits / self.temperature).sigmoid()


OWN = [LateMaskConfig(), FadeMaskConfig(), TiltMaskConfig()]


@pytest.mark.parametrize("mask", OWN, ids=lambda mask: mask.family)
def test_it_is_trained_saved_measured_and_rounded(mask: MaskConfig, store, tmp_path: Path) -> None:
    config = TopKConfig(d_sae=D_SAE, k=4, mask=mask)
    run = TrainingRun("own", tmp_path / "own", config, TrainingConfig(tokens=28 * 10, batch_tokens=28, device="cpu"))
    train([run], store)
    sae, metadata = load_sae(tmp_path / "own/sae")
    assert sae.config == config
    assert measured_mask(sae, seed=0) == (sae.mask, True) and acts_in_forward(sae)
    positions = torch.arange(L)
    assert torch.equal(torch.from_numpy(weights_at(sae.mask, positions)), sae.mask(positions).double())
    start = rebuild_start(LoadedSAE("own", sae, metadata), store)
    assert not isinstance(start, str) and torch.equal(start.mask(positions)[:, 0] > 0, sae.mask(positions)[:, 0] > 0)
    rounded = round_to_bands(sae, n_bands=2, keep=0.5).sae
    save_sae(rounded, tmp_path / "rounded", metadata)
    assert load_sae(tmp_path / "rounded")[0].config.mask.family == "bands"


def test_a_start_that_is_no_start_takes_over_no_other_sae() -> None:
    assert LateMaskConfig().usage_source is None and FadeMaskConfig().usage_source is None
    start = Start(kind="from_usage", sae=Path("there"))
    assert TiltMaskConfig(start=start).usage_source == Path("there")


def test_a_learnt_family_starts_from_usage(store, tmp_path: Path) -> None:
    settings = TrainingConfig(tokens=28 * 10, batch_tokens=28, device="cpu")
    train([TrainingRun("plain", tmp_path / "plain", TopKConfig(d_sae=D_SAE, k=4), settings)], store)
    mask = TiltMaskConfig(start=Start(kind="from_usage", sae=tmp_path / "plain/sae"))
    train([TrainingRun("tilt", tmp_path / "tilt", TopKConfig(d_sae=D_SAE, k=4, mask=mask), settings)], store)
    loaded, _ = load_sae(tmp_path / "tilt/sae")
    assert loaded.mask(torch.arange(L)).std() > 0.05
    again = TopKConfig(d_sae=D_SAE, k=4, mask=TiltMaskConfig(start=Start(kind="from_usage", sae=tmp_path / "tilt/sae")))
    with pytest.raises(TrainingError, match="its mask is tilt, not none"):
        train([TrainingRun("again", tmp_path / "again", again, settings)], store)


def test_flags_and_help_include_it() -> None:
    assert parse_mask("late, start: 3, shared: 0.25") == LateMaskConfig(start=3, shared=0.25)
    what, *settings = lines(MASKS, "late")
    assert what.startswith("late: 1 from a feature's own first position on")
    assert any(line.startswith("  set start = 2") for line in settings)
    assert any(line.startswith("  set beyond") for line in settings)


def test_a_derived_config_needs_a_name_of_its_own() -> None:
    class WiderBands(BandMaskConfig, frozen=True):
        width: int = 1

    with pytest.raises(ConfigError, match=r"WiderBands is not registered: give it its own family"):
        build_mask(WiderBands(), L, D_SAE)
    with pytest.raises(ConfigError, match="is not registered"):
        build_sae(TopKConfig(d_sae=D_SAE, k=4, mask=WiderBands()), 4, L, torch.Generator())
    with pytest.raises(ConfigError, match="called 'bands' already"):
        register_mask(WiderBands)


def test_a_config_without_a_name_is_refused_at_registration() -> None:
    class Nameless(MaskConfig, frozen=True):
        width: int = 1

    with pytest.raises(ConfigError, match=r'Nameless needs a name: family: Literal\["my_name"\] = "my_name"'):
        register_mask(Nameless)


def test_a_family_that_is_not_known_here_says_how_to_make_it_known() -> None:
    with pytest.raises(ConfigError, match=r"no mask family is called 'stripes'.*--plugin FILE.py"):
        parse_mask_config({"family": "stripes", "width": 2})


def test_no_mask_has_no_settings_and_saves_none() -> None:
    assert NoMaskConfig().model_dump(mode="json") == {"family": "none"} == NoMaskConfig().model_dump()
    assert TopKConfig(d_sae=4, k=1).model_dump(mode="json")["mask"] == {"family": "none"}
    for settings in ({"seed": 3}, {"acts_on": "forward"}, {"shared": 0.5}, {"anything": 1}):
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            parse_mask_config({"family": "none", **settings})
    assert list(settings_of(NoMaskConfig, "family")) == []
    assert reseeded(TopKConfig(d_sae=4, k=1), 7) == TopKConfig(d_sae=4, k=1)
    mask = NoMaskConfig()
    assert (mask.acts_on, mask.shared, mask.beyond, mask.seed) == ("placebo", 0.0, "tile", 0)
