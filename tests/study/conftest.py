"""A study of three tiny runs, one of them untrained, carried out once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scansion.activations import ActivationStore
from scansion.pipeline.run_results import RunResults
from scansion.study import ArmRecord, StudyPlan, StudyRecord, execute
from tests.evals.probing.constructed import telling_texts, use_asset, write_set


@dataclass
class Carried:
    """A plan, where it was carried out, and what came of it."""

    plan: StudyPlan
    home: Path
    folders: dict[int, Path]
    records: list[ArmRecord]
    results: dict[int, RunResults]
    held_out: ActivationStore

    def seed_folder(self, run: int) -> Path:
        """Where a run's only seed lies."""
        return self.folders[run] / "seed_0"


def settings_of(lm_folder: Path, documents: Path) -> dict[str, Any]:
    """A plan as read from YAML."""
    return {
        "name": "tiny",
        "model": str(lm_folder),
        "hook_point": "layers.1",
        "device": "cpu",
        "corpus": {
            "source": str(documents),
            "context_length": 16,
            "max_tokens": 1600,
            "held_out_tokens": 320,
            "held_out_fraction": 0.25,
        },
        "training": {"tokens": 1500, "batch_tokens": 75, "lr": 1e-3, "device": "cpu"},
        "evaluations": {
            "core": {"loss_contexts": 4},
            "sparse_probing": {
                "datasets": ["1_words"], "train_size": 40, "test_size": 20, "context_length": 16, "k_values": [1, 3],
            },
            "position": {
                "null_draws": 20, "max_null_draws": 100, "groups": 4, "mask_draws": 1, "replaced_contexts": 6,
            },
        },
        "runs": [
            {"name": "plain", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}},
            {
                "name": "masked",
                "sae": {
                    "architecture": "topk", "d_sae": 32, "k": 4,
                    "mask": {"family": "random_hard", "positions_per_feature": 4},
                },
            },
            {"name": "untrained", "sae": {"architecture": "relu", "d_sae": 32}, "training": {"tokens": 0}},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def settings(
    lm_folder: Path, documents: Path, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The plan's settings; the cache and the labelled texts are the tests' own."""
    home = tmp_path_factory.mktemp("cache")
    patch.setenv("SCANSION_CACHE", str(home))
    write_set(home / "asset", "1_words", telling_texts(30))
    use_asset(patch, home / "asset")
    return settings_of(lm_folder, documents)


@pytest.fixture(scope="module")
def carried(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """The study, carried out."""
    plan = StudyPlan.model_validate(settings)
    home = tmp_path_factory.mktemp("study")
    folders = {index: home / f"run_{index}" for index in range(3)}
    records = execute(plan, folders)
    results = {record.run: record.evaluations()[0] for record in records}
    return Carried(plan, home, folders, records, results, StudyRecord.open(home).held_out())
