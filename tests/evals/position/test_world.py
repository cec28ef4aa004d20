"""A synthetic world fitted to measured profiles: what was planted is what is read from its counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.errors import ConfigError
from scansion.evals.position.information import effective_positions
from scansion.evals.position.profiles import Profiles
from scansion.evals.position.world import world_of
from scansion.synth import SynthConfig
from scansion.synth.profiles import draw_profiles, firing_rates

TOKENS = 2000


def profiles_of(counts: np.ndarray, q_value: np.ndarray | None = None) -> Profiles:
    tokens = np.full(len(counts), TOKENS)
    q = np.where(counts.std(axis=0) > 0, 0.0, 1.0) if q_value is None else q_value
    return {
        "counts.in_force": counts,
        "tokens": tokens,
        "in_force.q_value": q,
        "in_force.effective_positions": np.minimum(effective_positions(counts, tokens), len(counts)),
    }


def test_what_was_planted_is_found() -> None:
    config = SynthConfig(n_features=400, context_length=32, mean_l0=3, band_width=(4, 8), period=(4, 8), seed=1)
    kinds, probabilities = draw_profiles(config, firing_rates(config), torch.Generator().manual_seed(0))
    drawn = np.random.default_rng(0).binomial(TOKENS, probabilities.numpy()).astype(float)
    uniform = np.array([kind == "uniform" for kind in kinds])
    found = world_of(profiles_of(drawn, np.where(uniform, 1.0, 0.0)), 32)
    assert found["bound"] == pytest.approx(0.5, abs=0.01)
    shares = {kind: kinds.count(kind) / (~uniform).sum() for kind in ("band", "single", "periodic")}
    assert found["mix"] == pytest.approx(shares, abs=0.02)
    assert found["band_width"] == (4, 7), "seven of eight positions hold 80%"
    SynthConfig.model_validate({**config.model_dump(), **found})


def test_widths_follow_the_length_of_contexts() -> None:
    counts = np.zeros((128, 1))
    counts[40:56] = 100
    assert world_of(profiles_of(counts), 32) == {
        "bound": 1.0,
        "mix": {"band": 1.0, "single": 0.0, "periodic": 0.0},
        "band_width": (3, 3),  # 13 of the 16 positions hold 80%, and 13/128 of 32 is 3.25
    }


def test_rare_wide_and_chance_profiles_bind_nothing() -> None:
    counts = np.full((32, 4), 100.0)
    counts[:20, 1] = 130  # wide
    counts[:, 2] = 0
    counts[0, 2] = 49  # rare
    counts[:, 3] = 0
    counts[:4, 3] = 100  # narrow, by chance: q is high
    ragged = np.full((32, 1), 10.0)
    ragged[[0, 9, 31]] = 300  # concentrated, and no kind of profile that a world has
    assert world_of(profiles_of(ragged), 32) == {"bound": 0.0}
    assert world_of(profiles_of(counts, np.array([0.0, 0.0, 0.0, 0.2])), 32) == {"bound": 0.0}
    with pytest.raises(ConfigError, match="no feature fired 50 times"):
        world_of(profiles_of(counts[:, 2:3]), 32)


def test_a_lifted_mask_is_what_counts() -> None:
    flat, narrow = np.full((32, 1), 100.0), np.zeros((32, 1))
    narrow[:4] = 100
    lifted = {name.replace("in_force", "lifted"): values for name, values in profiles_of(flat).items()}
    assert world_of({**profiles_of(narrow), **lifted}, 32) == {"bound": 0.0}
    assert world_of(profiles_of(narrow), 32)["bound"] == 1.0
