"""Generated activations follow the planted profiles, and a store of them is a store like any other."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from scansion.activations import ActivationStore, ActivationStream
from scansion.errors import StoreError
from scansion.synth import PlantedData, PlantedDictionary, SynthConfig, plant_store
from tests.planted import EASY


def counts_of(config: SynthConfig) -> tuple[PlantedDictionary, np.ndarray]:
    planted = PlantedDictionary.plant(config)
    return planted, PlantedData(planted, "train").firing_counts().numpy()


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_features_fire_as_their_profiles_say(correlation: float) -> None:
    config = SynthConfig(n_contexts=2000, bound=0.6, correlation=correlation)
    planted, counts = counts_of(config)
    profiles = planted.profiles.numpy()
    assert (counts[profiles == 0] == 0).all()
    # Two-sided binomial p-values of all cells: with 1e-7 a cell, one false alarm in a thousand runs.
    low, high = binom.ppf(5e-8, 2000, profiles), binom.isf(5e-8, 2000, profiles)
    assert ((low <= counts) & (counts <= high)).all()
    z = (counts - 2000 * profiles)[profiles > 0] / np.sqrt(2000 * profiles * (1 - profiles))[profiles > 0]
    assert z.std() == pytest.approx(1, abs=0.05)


def test_uniform_features_fire_everywhere_alike() -> None:
    planted, counts = counts_of(SynthConfig(n_contexts=2000, bound=0))
    expected = counts.mean(axis=0)
    statistic = ((counts - expected) ** 2 / (expected * (1 - expected / 2000))).sum(axis=0)
    degrees = planted.config.context_length - 1
    assert statistic.mean() == pytest.approx(degrees, rel=0.06)


def test_mean_l0_is_as_configured() -> None:
    for bound in (0, 0.5, 1):
        planted, counts = counts_of(SynthConfig(n_contexts=2000, bound=bound, correlation=0))
        tokens = 2000 * planted.config.context_length
        assert counts.sum() / tokens == pytest.approx(6.0, abs=5 * np.sqrt(6 / tokens))


def test_features_of_a_group_fire_together_and_others_do_not() -> None:
    config = SynthConfig(n_contexts=2000, bound=0, correlation=0.6, group_size=4)
    planted = PlantedDictionary.plant(config)
    fired = torch.cat([block.fired for block in PlantedData(planted, "train").blocks()], dim=1).flatten(0, 1).double()
    lift = (fired.T @ fired / len(fired)) / (planted.rates[:, None] * planted.rates[None])
    same = planted.groups[:, None] == planted.groups[None]
    different = lift[~same].mean()
    same.fill_diagonal_(False)
    assert float(different) == pytest.approx(1, abs=0.02)
    assert float(lift[same].mean()) > 3


def test_activations_are_strengths_times_directions_plus_noise() -> None:
    config = SynthConfig(n_contexts=256, d_in=40, n_features=20, mean_l0=2, noise=0.3, amplitude_mean=5, bound=0)
    planted = PlantedDictionary.plant(config)
    block = PlantedData(planted, "train").block(0)
    silent = ~block.fired.any(dim=-1)
    rms = 5 * (2 * (1 + config.amplitude_spread**2)) ** 0.5
    noise_norm = block.x[silent].square().sum(dim=-1).mean().sqrt()
    assert float(noise_norm) == pytest.approx(0.3 * rms, rel=0.02)
    # With as many dimensions as this, least squares on the features that fired returns their strengths.
    alone = block.fired.sum(dim=-1) == 1
    feature = block.fired[alone].float().argmax(dim=-1)
    strengths = (block.x[alone] * planted.directions[feature]).sum(dim=-1)
    assert float(strengths.mean()) == pytest.approx(5, rel=0.03)
    spread = (strengths.var() - (0.3 * rms) ** 2 / 40).sqrt() / strengths.mean()
    assert float(spread) == pytest.approx(config.amplitude_spread, abs=0.03)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        plant_store(PlantedDictionary.plant(EASY.model_copy(update={"seed": seed})), "train", tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix)
    assert "manifest.json" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_the_store_holds_the_blocks_in_order_and_every_token_counts(tmp_path: Path) -> None:
    config = EASY.model_copy(update={"n_contexts": 2300, "dtype": "float32"})
    planted = PlantedDictionary.plant(config)
    store = plant_store(planted, "train", tmp_path / "s")
    assert len(list((tmp_path / "s").glob("shard-*"))) == 2
    x = torch.cat([block.x for block in PlantedData(planted, "train").blocks()], dim=1)
    assert torch.equal(store.contexts(0, 2300).x, x)
    assert store.valid.all() and len(store.used_positions(use_position_0=True)) == 16
    stream = ActivationStream(store, per_position=4, seed=0, use_position_0=True)
    assert stream.batch(0).x.shape == (16, 4, 256)
    store.verify()


def test_train_and_held_out_share_nothing(make_world) -> None:
    planted, train = make_world("train")
    held_out = plant_store(planted, "held_out", train.folder.parent / "h")
    assert not torch.equal(train.contexts(0, 1).x, held_out.contexts(0, 1).x)


def test_a_finished_store_is_reused_and_another_world_is_refused(tmp_path: Path, monkeypatch) -> None:
    planted = PlantedDictionary.plant(EASY)
    plant_store(planted, "train", tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("a block was generated again")

    monkeypatch.setattr(PlantedData, "block", never)
    plant_store(planted, "train", tmp_path)
    other = PlantedDictionary.plant(EASY.model_copy(update={"n_contexts": 100}))
    with pytest.raises(StoreError, match="n_contexts is 512 there and 100 here"):
        plant_store(other, "train", tmp_path)


_SLOW = """
import sys, time
from pathlib import Path
from scansion.synth import PlantedData, PlantedDictionary, SynthConfig, plant_store
plain = PlantedData.block
def slowed(self, index):
    time.sleep(0.05)
    return plain(self, index)
PlantedData.block = slowed
planted = PlantedDictionary.plant(SynthConfig(n_contexts=8500, d_in=8, n_features=32, mean_l0=1, bound=0))
Path(sys.argv[1] + ".started").touch()
plant_store(planted, "train", Path(sys.argv[1]))
"""


def test_generation_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    plant_store(
        PlantedDictionary.plant(SynthConfig(n_contexts=8500, d_in=8, n_features=32, mean_l0=1, bound=0)),
        "train",
        tmp_path / "whole",
    )
    killed = 0
    for delay in (0.5, 1.2, 120):
        started = tmp_path / "killed.started"
        started.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path / "killed")])
        while not started.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed, "generation was too quick to be killed"
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.suffix)
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    ActivationStore(tmp_path / "killed").verify()
