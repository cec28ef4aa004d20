"""Extreme numbers: one line that says what to change, before heavy work, and a folder that takes the corrected command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scansion.activations import ActivationStore, ActivationStream, harvest
from scansion.errors import ConfigError, StoreError
from scansion.evals.base import reasons_from_activity
from scansion.sae import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SAEConfig,
    SwitchConfig,
    TopKConfig,
    build_sae,
)
from scansion.study import StudyPlan
from scansion.study.checks import check_plan
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from tests.conftest import make_lm, make_plan, random_contexts
from tests.faults.workspace import PLAN, WORLD

Run = Callable[..., tuple[int, str, str]]
SMALL = {"--tokens": 640, "--d-sae": 16, "--k": 2, "--batch-tokens": 64, "--device": "cpu"}
ARCHITECTURES: list[SAEConfig] = [
    TopKConfig(d_sae=16, k=4),
    BatchTopKConfig(d_sae=16, k=4),
    ReluConfig(d_sae=16),
    GatedConfig(d_sae=16),
    JumpReluConfig(d_sae=16),
    MatryoshkaConfig(d_sae=16, k=4),
    SwitchConfig(d_sae=16, k=2, n_experts=4),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers") / "store"
    plant_store(PlantedDictionary.plant(SynthConfig.model_validate(WORLD)), "train", folder)
    return folder


REFUSED = {
    ("--d-sae", "1.5"): "whole number",
    ("--d-sae", str(10**12)): "lower d_sae",
    ("--d-sae", "0"): "d_sae",
    ("--k", "17"): "more than the 16 features",
    ("--lr", "inf"): "lr",
    ("--lr", "nan"): "lr",
    ("--lr", "-1"): "lr",
    ("--lr", "1e10"): "",
    ("--seed", str(2**70)): "seed",
    ("--mask", "bands, count: 400"): "400 bands do not fit in contexts of 8 tokens",
    ("--mask", f"bands, count: {10**12}"): "do not fit in contexts of 8 tokens",
    ("--device", "cuda:99"): "device 'cuda:99' is not usable here",
}


def command(store: Path, folder: Path, flag: str = "--d-sae", value: object = 16) -> list[object]:
    """A training run that works, but for one flag."""
    flags = {**SMALL, flag: value}
    return ["train", store, "--out", folder / "run", *(part for item in flags.items() for part in item)]


@pytest.mark.parametrize("flag", REFUSED, ids=" ".join)
def test_the_corrected_command_works_in_the_same_folder(
    flag: tuple[str, str], run: Run, store: Path, tmp_path: Path
) -> None:
    status, _, err = run(*command(store, tmp_path, *flag))
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert status and "Traceback" not in err and len(lines) == 1 and REFUSED[flag] in lines[0], err
    assert len(lines[0]) < 300
    status, out, err = run(*command(store, tmp_path))
    assert status == 0 and "trained:" in out, err


def test_training_on_no_token_is_not_called_trained(run: Run, store: Path, tmp_path: Path) -> None:
    status, out, err = run(*command(store, tmp_path, "--tokens", 0))
    assert status == 0 and "not trained (tokens is 0)" in out, err


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_stores_whose_activations_cannot_be_scaled(scale: float, run: Run, tmp_path: Path) -> None:
    lm = make_lm()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(scale)
    plan = make_plan(tmp_path / "store", random_contexts(40, seed=3))
    store = harvest(plan, lambda: lm)
    with pytest.raises(StoreError, match=r"mean norm of .*, which cannot be trained on"):
        _ = ActivationStream(store, per_position=4, seed=0).input_scale
    status, _, err = run(*command(tmp_path / "store", tmp_path))
    assert status and "cannot be trained on" in err and "Traceback" not in err
    assert not (tmp_path / "run/config.yaml").exists()


def test_activations_that_do_not_vary_are_a_reason_to_call_a_dictionary_degenerate() -> None:
    assert reasons_from_activity(3, 0.0, 0.0)[0] == "the activations do not vary: their variance is 0 in float32"
    assert reasons_from_activity(3, 1.0, 1.0) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: config.architecture)
def test_an_sae_of_another_type_takes_float32(config: SAEConfig, dtype: torch.dtype) -> None:
    exact = build_sae(config, 8, 4, torch.Generator().manual_seed(0)).eval()
    x, positions = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    sae = build_sae(config, 8, 4, torch.Generator().manual_seed(0)).eval().to(dtype)
    acts = sae.encode(x, positions)
    assert acts.dtype == sae.decode(acts.float(), positions).dtype == sae(x, positions).dtype == dtype
    with torch.no_grad():
        error = (sae(x, positions).float() - exact(x, positions)).norm() / exact(x, positions).norm()
    assert float(error) < 0.15
    assert torch.equal(exact.encode(x.double(), positions), exact.encode(x, positions))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"lr": float("inf")}}, "finite"),
        ({"training": {"lr": float("nan")}}, "finite|greater"),
        ({"training": {"tokens": float("inf")}}, "finite|integer"),
        ({"seeds": [2**70]}, "is no seed"),
        ({"max_hours": float("inf")}, "finite"),
        ({"world": {**WORLD, "mean_l0": float("inf")}}, "finite"),
        ({"runs": [{"name": "a", "sae": {"architecture": "topk", "d_sae": 16, "k": 17}}]}, "more than the 16 features"),
        ({"runs": [{"name": "a", "sae": {"architecture": "relu", "d_sae": 1.5}}]}, "integer"),
    ],
)
def test_plans_with_such_numbers_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StudyPlan.model_validate({**PLAN, **change})


def test_a_plan_that_does_not_fit_into_memory_is_refused_before_its_activations_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    run = {"name": "huge", "sae": {"architecture": "relu", "d_sae": 10**12, "mask": {"family": "random_hard"}}}
    plan = StudyPlan.model_validate({**PLAN, "runs": [run]})
    with pytest.raises(ConfigError, match=r"run 0 \(huge\): training 1,000,000,000,000 features takes .* lower d_sae"):
        check_plan(plan, {0: tmp_path / "run_0"})
    assert not list(tmp_path.iterdir())


def test_positions_far_beyond_the_contexts_are_refused(store: Path) -> None:
    with pytest.raises(StoreError, match="are not among the"):
        ActivationStore(store).contexts(2**40, 2**40 + 1)
