"""A run that failed: found in a trial before any harvest, recorded, and tried again once its code or settings change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import experiment
from scansion.errors import TrainingError
from scansion.masks import MASKS, RandomHardMaskConfig
from scansion.masks.random_hard import RandomHardMask
from scansion.sae import ARCHITECTURES, ReluConfig, TopKConfig
from scansion.study import StudyPlan, execute, failures, trials
from scansion.study.failures import read_failure
from scansion.training import TrainingConfig
from scansion.training.trial import require_trainable
from tests.study.conftest import settings_of
from tests.training.test_training import CONFIGS

EXAMPLE = Path(__file__).parents[2] / "examples/periodic_mask.py"


def plan_of(lm_folder: Path, documents: Path, *runs: dict[str, Any], **changes: Any) -> StudyPlan:
    settings = {**settings_of(lm_folder, documents), "evaluations": {"core": {"loss_contexts": 0}}, **changes}
    return StudyPlan.model_validate({**settings, "runs": list(runs)})


TOPK = {"name": "plain", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}}
HARD = {"name": "hard", "sae": {"architecture": "topk", "d_sae": 32, "k": 4, "mask": {"family": "random_hard"}}}


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "none") for name in CONFIGS), *(("topk", family) for family in MASKS.names())]
)
def test_every_architecture_and_mask_of_ours_can_be_trained(name: str, family: str) -> None:
    mask = MASKS.config_called(family)()
    if mask.usage_source is not None or family == "usage_bands":
        pytest.skip("needs the SAE that it starts from")
    require_trainable(CONFIGS[name].model_copy(update={"mask": mask}), TrainingConfig(), 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda table: table[:, :-1], r"gives weights of shape \[8, 15\] for 8 positions; expected \[8, 16 features\]"),
        (lambda table: table.T, r"gives weights of shape \[16, 8\]"),
        (lambda table: table * float("nan"), "gives weights that are not finite"),
    ],
)
def test_a_mask_of_the_wrong_form_is_named(monkeypatch: pytest.MonkeyPatch, as_users_run_it, wrong, message) -> None:
    right = RandomHardMask.forward
    monkeypatch.setattr(RandomHardMask, "forward", lambda self, positions: wrong(right(self, positions)))
    with pytest.raises(TrainingError, match=message):
        require_trainable(TopKConfig(d_sae=16, k=2, mask=RandomHardMaskConfig()), TrainingConfig(), 8)


def test_a_mask_that_lets_nothing_fire_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RandomHardMask, "can_fire", lambda self, positions: torch.zeros(len(positions), 16, dtype=torch.bool)
    )
    with pytest.raises(TrainingError, match="random_hard lets no feature fire at any position"):
        require_trainable(TopKConfig(d_sae=16, k=2, mask=RandomHardMaskConfig()), TrainingConfig(), 8)


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_weights_that_cannot_learn_are_named(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    relu = ARCHITECTURES.called("relu")
    right = relu.__init__

    def dull(self, *arguments: Any) -> None:
        right(self, *arguments)
        with torch.no_grad():
            self.W_enc.fill_(value)
            self.W_dec.fill_(value)

    monkeypatch.setattr(relu, "__init__", dull)
    with pytest.raises(TrainingError, match="is zero everywhere" if value == 0 else "not finite"):
        require_trainable(ReluConfig(d_sae=16), TrainingConfig(), 8)


@pytest.fixture
def failing_masks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Random hard masks that raise."""
    patch = pytest.MonkeyPatch()

    def broken(self, positions):
        raise IndexError("the mask's own mistake")

    patch.setattr(RandomHardMask, "forward", broken)
    yield patch
    patch.undo()


def test_what_fails_is_recorded_before_any_harvest(
    lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_masks
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    plan, folder = plan_of(lm_folder, documents, HARD, seeds=[0, 1]), tmp_path / "run_0"
    (record,) = execute(plan, {0: folder})
    assert record.info.status == "failed" and record.info.reasons == [
        "seed 0, 1 a trial of a few steps failed: IndexError: the mask's own mistake"
    ]
    assert not (tmp_path / "cache/stores").exists()
    written = json.loads((folder / "seed_1/failure.json").read_text())
    assert "in broken" in written["traceback"]
    assert "hard: failed" in (tmp_path / "notes.txt").read_text()


def test_a_run_is_tried_again_when_its_code_changes_and_not_before(
    lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_masks, capsys
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    plan, folders = plan_of(lm_folder, documents, TOPK, HARD), {0: tmp_path / "run_0", 1: tmp_path / "run_1"}
    assert [record.info.status for record in execute(plan, folders)] == ["ok", "failed"]
    failing_masks.undo()
    assert [record.info.status for record in execute(plan, folders)] == ["ok", "failed"], "the code is the same"
    assert "it is tried again after a change, or with --retry" in capsys.readouterr().err
    monkeypatch.setattr(sys.modules["scansion.study.execute"], "code_fingerprint", lambda: "other")
    assert [record.info.status for record in execute(plan, folders)] == ["ok", "ok"]
    assert "the code has changed since, so it is tried again" in capsys.readouterr().err
    assert read_failure(folders[1] / "seed_0") is None


def test_a_failed_run_takes_other_settings(
    lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run_0"
    hot = plan_of(
        lm_folder, documents, TOPK, training={"tokens": 1500, "batch_tokens": 75, "lr": 1e30, "device": "cpu",
                                              "checkpoint_seconds": 0, "log_every": 1, "lr_warmup_steps": 15},
    )  # fmt: skip
    (record,) = execute(hot, {0: folder})
    assert record.info.status == "failed"
    assert (folder / "seed_0").is_dir()
    (record,) = execute(plan_of(lm_folder, documents, TOPK), {0: folder})
    assert record.info.status == "ok" and record.info.means["fve"] > 0


def test_an_evaluation_that_failed_keeps_the_trained_sae_unless_its_settings_change(
    lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    execution, folder = sys.modules["scansion.study.execute"], tmp_path / "run_0"
    weights = folder / "seed_0/sae/sae_weights.safetensors"
    plan = plan_of(lm_folder, documents, TOPK)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("the evaluation's own mistake")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "evaluate", broken)
        (record,) = execute(plan, {0: folder})
        assert record.info.status == "failed" and "evaluation's own mistake" in record.info.reasons[0]
        trained = weights.stat().st_mtime_ns
        patch.setattr(execution, "code_fingerprint", lambda: "other")
        execute(plan, {0: folder})
        assert weights.stat().st_mtime_ns == trained
    (record,) = execute(plan_of(lm_folder, documents, {**TOPK, "sae": {**TOPK["sae"], "k": 5}}), {0: folder})
    assert record.info.status == "ok" and weights.stat().st_mtime_ns != trained
    assert "with other settings: its folder is emptied" in capsys.readouterr().err


def test_the_fingerprint_covers_the_script_and_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "experiment.py"
    script.write_text("lr = 1")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    first = failures.code_fingerprint()
    assert failures.code_fingerprint() == first
    script.write_text("lr = 2")
    second = failures.code_fingerprint()
    monkeypatch.setattr(failures, "loaded_plugins", lambda: [{"file": "mine.py", "sha256": "0"}])
    assert len({first, second, failures.code_fingerprint()}) == 3


def test_a_loop_mends_its_mask_and_goes_on(lm_folder: Path, documents: Path, tmp_path: Path) -> None:
    """As an automated loop works: it edits a file, starts the same command again, and reads the exit status."""
    plan = {**settings_of(lm_folder, documents), "evaluations": {"core": {"loss_contexts": 0}}}
    mask = {"family": "periodic", "period": 2}
    plan["runs"] = [{"name": "turns", "sae": {"architecture": "topk", "d_sae": 32, "k": 4, "mask": mask}}]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**plan, "plugins": ["mine.py"]}))
    source = EXAMPLE.read_text()
    code = "import sys, experiment; experiment.PLAN = sys.argv.pop(1); experiment.main()"

    def attempt(text: str) -> tuple[int, dict[str, Any]]:
        (tmp_path / "mine.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "plan.yaml"), f"--out_dir={tmp_path / 'run_0'}"],
            env={**os.environ, "SCANSION_CACHE": str(tmp_path / "cache")},
            cwd=Path(experiment.__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, json.loads((tmp_path / "run_0/final_info.json").read_text())["turns"]

    for right, wrong, error in (
        ("config.period ==", "config.perod ==", "AttributeError"),
        ("features = torch.arange(n_positions)[:, None], torch", "features = torch.arange(3)[:, None], torch", "Sizes"),
    ):
        assert right in source
        status, info = attempt(source.replace(right, wrong))
        assert status == 1 and info["status"] == "failed" and error in info["reasons"][0]
    assert not (tmp_path / "cache/stores").exists(), "nothing was harvested for a run that cannot be trained"
    status, info = attempt(source)
    assert status == 0 and info["status"] == "ok" and info["means"]["fve"] > 0
