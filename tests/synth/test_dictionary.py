"""Planted features fire as often as told, where told, and bound ones as often as unbound ones."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from scansion.errors import ConfigError
from scansion.sae import TopKConfig, build_sae
from scansion.synth import PlantedDictionary, ProfileMix, SynthConfig
from scansion.synth.profiles import firing_rates

WORLDS = {
    "default": SynthConfig(),
    "unbound": SynthConfig(bound=0),
    "bound": SynthConfig(bound=1),
    "bands": SynthConfig(bound=1, mix=ProfileMix(band=1, single=0, periodic=0)),
    "rare": SynthConfig(n_features=400, mean_l0=1.5, zipf_exponent=0.3, context_length=24, bound=0.3),
}


@pytest.mark.parametrize("name", WORLDS)
def test_expected_l0_is_the_configured_one_and_rates_are_the_zipf_ones(name: str) -> None:
    config = WORLDS[name]
    planted = PlantedDictionary.plant(config)
    assert float(planted.profiles.sum(dim=1).mean()) == pytest.approx(config.mean_l0)
    torch.testing.assert_close(planted.rates.sort(descending=True).values, firing_rates(config))
    ranks = torch.arange(1, config.n_features + 1)
    product = firing_rates(config) * ranks**config.zipf_exponent
    torch.testing.assert_close(product, product[0].expand_as(product))


@pytest.mark.parametrize("name", WORLDS)
def test_profiles_are_flat_on_a_support_of_their_kind(name: str) -> None:
    config = WORLDS[name]
    planted = PlantedDictionary.plant(config)
    assert planted.profiles.min() >= 0 and planted.profiles.max() <= config.max_probability + 1e-12
    for feature, kind in enumerate(planted.kinds):
        profile = planted.profiles[:, feature]
        support = profile.nonzero().squeeze(1)
        torch.testing.assert_close(profile[support], profile[support[0]].expand(len(support)))
        gaps = set(support.diff().tolist())
        if kind == "uniform":
            assert len(support) == config.context_length
        elif kind == "single":
            assert len(support) == 1
        elif kind == "band":
            low, high = config.band_width
            assert low <= len(support) <= high and gaps <= {1}
        else:
            (period,) = gaps
            assert config.period[0] <= period <= config.period[1]
            assert support[0] < period and support[-1] + period >= config.context_length


def test_kinds_come_in_the_shares_of_the_mix() -> None:
    planted = PlantedDictionary.plant(SynthConfig(bound=0.5, mix=ProfileMix(band=2, single=1, periodic=1)))
    counts = {kind: planted.kinds.count(kind) for kind in ("uniform", "band", "single", "periodic")}
    assert counts == {"uniform": 128, "band": 64, "single": 32, "periodic": 32}


def test_bound_and_unbound_features_are_equally_frequent() -> None:
    ratios = []
    for seed in range(20):
        planted = PlantedDictionary.plant(SynthConfig(bound=0.5, seed=seed))
        bound, unbound = planted.rates[planted.is_bound], planted.rates[~planted.is_bound]
        assert len(bound) == len(unbound) == 128
        # Neighbouring ranks face each other, so the sorted rates interleave.
        for a, b in ((bound, unbound), (unbound, bound)):
            a, b = a.sort(descending=True).values, b.sort(descending=True).values
            assert (a[1:] <= b[:-1]).all()
        ratios.append(float(bound.mean() / unbound.mean()))
    assert max(abs(ratio - 1) for ratio in ratios) < 0.06
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.03)


def test_positions_are_about_equally_busy() -> None:
    for seed in range(10):
        load = PlantedDictionary.plant(SynthConfig(bound=1, seed=seed)).profiles.sum(dim=1)
        assert (load / load.mean() - 1).abs().max() < 0.15


def test_worlds_that_differ_in_bound_share_directions_rates_and_groups() -> None:
    worlds = [PlantedDictionary.plant(SynthConfig(bound=bound, seed=3)) for bound in (0, 0.5, 1)]
    for world in worlds[1:]:
        assert torch.equal(world.directions, worlds[0].directions)
        assert torch.equal(world.groups, worlds[0].groups)
        torch.testing.assert_close(world.rates, worlds[0].rates)


def test_the_seed_decides_everything() -> None:
    first, again, other = (PlantedDictionary.plant(SynthConfig(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.directions, again.directions) and torch.equal(first.profiles, again.profiles)
    assert first.kinds == again.kinds
    assert not torch.equal(first.directions, other.directions) and not torch.equal(first.profiles, other.profiles)
    torch.testing.assert_close(first.directions.norm(dim=1), torch.ones(256))


def test_an_sae_of_the_same_seed_does_not_start_at_the_answer() -> None:
    for seed in range(3):
        planted = PlantedDictionary.plant(SynthConfig(seed=seed))
        sae = build_sae(TopKConfig(d_sae=256), 48, 32, torch.Generator().manual_seed(seed))
        assert float((sae.W_dec.detach() * planted.directions).sum(dim=1).abs().mean()) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"band_width": (5, 3)}, r"band_width is \(5, 3\); it should be two numbers in ascending order"),
        ({"period": (2, 40)}, r"period is \(2, 40\).*32 positions"),
        ({"mix": {"band": 0, "single": 0, "periodic": 0}}, "every share is 0"),
        ({"bound": 1.5}, "bound"),
        ({"widht": 3}, "widht"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynthConfig.model_validate(settings)


def test_rates_that_no_profile_can_carry_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs at least 13 of the 32 positions .* widen band_width"):
        PlantedDictionary.plant(SynthConfig(bound=1, mix=ProfileMix(band=0, single=1, periodic=0)))
    with pytest.raises(ConfigError, match="most frequent feature would fire on 75% of the tokens"):
        PlantedDictionary.plant(SynthConfig(n_features=8, zipf_exponent=0))
