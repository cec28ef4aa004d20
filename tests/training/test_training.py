"""Training learns, resumes to the same bytes, trains together as it does alone, and stops at the first bad loss."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.errors import BusyError, ConfigError, ScansionError, TrainingError
from scansion.masks import (
    AdaptiveMaskConfig,
    BandMaskConfig,
    MaskUpdates,
    RandomHardMaskConfig,
    SoftMaskConfig,
    UsageBandMaskConfig,
)
from scansion.sae import (
    BatchTopKConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SwitchConfig,
    TemporalCrosscoderConfig,
    TopKConfig,
    TSAEConfig,
    load_sae,
)
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.learner import Learner
from scansion.training.run_folder import RunFolder
from tests.killing import kill_after
from tests.outliers import outlier_store

D_SAE = 48
CONFIGS = {
    "relu": ReluConfig(d_sae=D_SAE, l1_coefficient=0.02),
    "topk": TopKConfig(d_sae=D_SAE, k=4),
    "batch_topk": BatchTopKConfig(d_sae=D_SAE, k=4),
    "jumprelu": JumpReluConfig(d_sae=D_SAE, initial_threshold=0.05, l0_coefficient=0.005),
    "masked": TopKConfig(d_sae=D_SAE, k=4, mask=RandomHardMaskConfig(positions_per_feature=3)),
    "banded": ReluConfig(d_sae=D_SAE, l1_coefficient=0.02, mask=BandMaskConfig(count=4, shared=0.25)),
    "sliced": BatchTopKConfig(d_sae=D_SAE, k=4, mask=BandMaskConfig(preset="static_slicing", count=2)),
    # Mask updates begin late and are rare, so that checkpoints fall before, between and after them.
    "soft": TopKConfig(
        d_sae=D_SAE, k=4, mask=SoftMaskConfig(l1_coefficient=0.1, updates=MaskUpdates(start=30, every=7, stop=80))
    ),
    "adaptive": ReluConfig(d_sae=D_SAE, l1_coefficient=0.02, mask=AdaptiveMaskConfig(positions_per_feature=4)),
    "matryoshka": MatryoshkaConfig(d_sae=D_SAE, k=4, mask=BandMaskConfig(count=4, shared=0.25)),
    "tsae": TSAEConfig(d_sae=D_SAE, k=4, contrastive_coefficient=0.1),
    "temporal_crosscoder": TemporalCrosscoderConfig(d_sae=D_SAE, k=4, window=3),
    "switch": SwitchConfig(d_sae=D_SAE, k=4, n_experts=4, balance_coefficient=0.1),
    "usage": TopKConfig(d_sae=D_SAE, k=4, mask=UsageBandMaskConfig(count=2, every=10, stay=0.0)),
}
TRAINING = TrainingConfig(
    tokens=2_800, batch_tokens=28, lr=3e-3, dead_after_tokens=150, log_every=10, checkpoint_seconds=0, device="cpu"
)


def run_of(name: str, folder: Path, **training: object) -> TrainingRun:
    return TrainingRun(name, folder, CONFIGS[name], TRAINING.model_copy(update=training))


def weights(folder: Path) -> bytes:
    return (folder / "sae" / "sae_weights.safetensors").read_bytes()


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, float]]:
    """The metrics that must not depend on when a run was stopped."""
    timed = ("seconds", "step_ms", "checksum", "run")
    return [{name: value for name, value in line.items() if name not in timed} for line in metrics(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store: ActivationStore) -> Path:
    """Every architecture, each trained alone and undisturbed."""
    folder = tmp_path_factory.mktemp("trained")
    for name in CONFIGS:
        train([run_of(name, folder / name)], store)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_falls_and_the_record_is_complete(trained: Path, name: str) -> None:
    lines = metrics(trained / name)
    assert [line["step"] for line in lines] == list(range(10, 101, 10))
    assert lines[-1]["mse"] < 0.7 * lines[0]["mse"]
    assert {line["precision"] for line in lines} == {"float32"}
    sae, metadata = load_sae(trained / name / "sae")
    assert (metadata.steps, metadata.tokens, metadata.use_position_0) == (100, 2800, False)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    if name in ("topk", "masked"):
        assert lines[-1]["l0"] <= 4


def test_the_saved_sae_takes_activations_as_the_lm_makes_them(trained: Path, store: ActivationStore) -> None:
    sae, metadata = load_sae(trained / "topk" / "sae")
    assert metadata.input_scale != pytest.approx(1.0, abs=0.05)
    x = store.contexts(0, store.n_contexts).x.transpose(0, 1)
    used = store.valid.T.clone()
    used[:, 0] = False
    error = (x - sae(x))[used].square().sum()
    assert error < 0.5 * (x[used] - x[used].mean(dim=0)).square().sum()


def test_trained_together_is_trained_alone(trained: Path, store: ActivationStore, tmp_path: Path) -> None:
    train([run_of(name, tmp_path / name) for name in CONFIGS], store)
    for name in CONFIGS:
        assert weights(tmp_path / name) == weights(trained / name), name


@pytest.mark.parametrize("name", CONFIGS)
def test_interrupted_anywhere_ends_with_the_same_bytes(
    trained: Path, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain, generator, calls = Learner.advance, random.Random(name), 0
    stops = sorted(generator.sample(range(1, 130), 4))

    def advance(self, batch):
        nonlocal calls
        calls += 1
        if calls in stops:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(Learner, "advance", advance)
    interruptions = 0
    while True:
        try:
            # A checkpoint only now and then, so that steps are lost and taken again.
            train([run_of(name, tmp_path / "run", checkpoint_seconds=0.02)], store)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2
    assert weights(tmp_path / "run") == weights(trained / name)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(10, 101, 10))
    assert untimed(tmp_path / "run") == untimed(trained / name)


def killable_runs(folder: Path) -> list[TrainingRun]:
    """Two runs on one stream that save at different moments, one of them at every step."""
    return [
        run_of("relu", folder / "relu", tokens=4_200, checkpoint_seconds=0.05),
        run_of("masked", folder / "masked", tokens=4_200, checkpoint_seconds=0),
    ]


def _train(started: Event, store: Path, folder: Path) -> None:
    started.set()
    train(killable_runs(folder), ActivationStore(store))


def test_killed_again_and_again_ends_with_the_same_bytes(store: ActivationStore, tmp_path: Path) -> None:
    train(killable_runs(tmp_path / "whole"), store)
    delays = (0.1, 0.2, 0.3, 0.4)
    assert kill_after(delays, _train, store.folder, tmp_path / "killed") >= 2, "training was too quick to be killed"
    for name in ("relu", "masked"):
        killed, whole = tmp_path / "killed" / name, tmp_path / "whole" / name
        assert weights(killed) == weights(whole), name
        assert untimed(killed) == untimed(whole), name


def _train_slowly(started: Event, store: Path, folder: Path) -> None:
    plain = RunFolder.save_checkpoint

    def slowly(self, tensors, counters):
        path = plain(self, tensors, counters)
        half_written = folder / "checkpoints" / ".partial-step"
        half_written.touch()
        started.set()
        time.sleep(0.3)
        half_written.unlink()  # fails if somebody else has deleted it
        return path

    RunFolder.save_checkpoint = slowly
    train([run_of("relu", folder, tokens=280, checkpoint_seconds=0)], ActivationStore(store))


def test_a_second_trainer_is_refused_and_leaves_the_files_of_the_first_alone(
    store: ActivationStore, tmp_path: Path
) -> None:
    run = run_of("relu", tmp_path, tokens=280, checkpoint_seconds=0)
    context = multiprocessing.get_context("forkserver")
    started = context.Event()
    first = context.Process(target=_train_slowly, args=(started, store.folder, tmp_path))
    first.start()
    assert started.wait(60)
    with pytest.raises(BusyError, match=f"process {first.pid} on .* is training there since"):
        train([run], store)
    first.join()
    assert first.exitcode == 0
    train([run], store)
    assert len(metrics(tmp_path)) == 1 and load_sae(tmp_path / "sae")[1].steps == 10


def test_a_finished_run_is_not_trained_again(trained: Path, store: ActivationStore, capsys) -> None:
    before = weights(trained / "topk")
    train([run_of("topk", trained / "topk")], store)
    assert weights(trained / "topk") == before
    assert "already trained" in capsys.readouterr().err


def test_another_run_in_the_same_folder_is_refused_and_says_what_differs(trained: Path, store: ActivationStore) -> None:
    with pytest.raises(TrainingError, match=r"training\.lr is 0\.003 there and 0\.01 here"):
        train([run_of("topk", trained / "topk", lr=0.01)], store)


def test_runs_that_cannot_share_a_stream_are_refused(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot share a stream: batch_tokens differ"):
        train([run_of("relu", tmp_path / "a"), run_of("topk", tmp_path / "b", batch_tokens=56)], store)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Learner.advance

    def poisoned(self, batch):
        result = plain(self, batch)
        if self.step == 38:
            result[0] = torch.nan
        return result

    monkeypatch.setattr(Learner, "advance", poisoned)
    with pytest.raises(TrainingError, match=r"at step 37; the last finite loss was [\d.]+ at step 36; .*step-0000000"):
        train([run_of("topk", tmp_path / "run")], store)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1] <= "step-000000037"
    assert not (tmp_path / "run" / "sae").exists()


def test_a_learning_rate_that_explodes_is_caught(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite at step"):
        train([run_of("jumprelu", tmp_path / "run", lr=1e30, lr_warmup_steps=0)], store)


def test_an_unwritable_folder_is_found_before_training(store: ActivationStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScansionError, match="cannot write in"):
        train([run_of("topk", tmp_path / "file" / "run")], store)


def test_no_token_asked_for_is_no_step_taken(store: ActivationStore, tmp_path: Path) -> None:
    train([run_of("topk", tmp_path / "run", tokens=0)], store)
    assert load_sae(tmp_path / "run" / "sae")[1].steps == 0


def test_schedules() -> None:
    config = TrainingConfig(lr=1.0, lr_warmup_steps=10, lr_decay_fraction=0.2, sparsity_warmup_fraction=0.1)
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert set(rates[9:81]) == {1.0}
    assert rates[80:] == pytest.approx([1 - 0.05 * i for i in range(20)])
    weights_ = [config.sparsity_weight_at(step, 100) for step in range(100)]
    assert weights_[:10] == pytest.approx([0.1 * i for i in range(1, 11)]) and set(weights_[9:]) == {1.0}
    assert TrainingConfig(lr=3e-4).lr_at(0, 100) == pytest.approx(3e-4 / 5)
    assert TrainingConfig(lr=3e-4, lr_warmup_steps=0, lr_decay_fraction=0).lr_at(99, 100) == 3e-4


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"precision": "tf32"}])
def test_a_device_or_precision_that_is_not_there_leaves_no_folder(store, tmp_path: Path, wrong: dict[str, str]) -> None:
    run = run_of(next(iter(CONFIGS)), tmp_path / "run", **wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong.values()))):
        train([run], store)
    assert not run.folder.exists()


def train_until(stop: int, run: TrainingRun, store: ActivationStore) -> None:
    """Train a run up to a step and interrupt it there."""
    plain = Learner.advance

    def advance(self, batch):
        if self.step == stop:
            raise KeyboardInterrupt
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "advance", advance)
        train([run], store)


def test_a_run_on_other_tokens_than_outliers_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    outlying = outlier_store(tmp_path / "store")
    whole, killed = (
        run_of("topk", tmp_path / name, exclude="outliers", exclude_tokens=(9,)) for name in ("whole", "killed")
    )
    train([whole], outlying)
    train_until(60, killed, outlying)
    train([killed], outlying)
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")
    metadata = load_sae(tmp_path / "whole" / "sae")[1]
    assert metadata.training["exclude"] == "outliers" and metadata.training["exclude_tokens"] == [9]


def test_outliers_do_not_set_the_scale_but_a_run_that_began_before_that_ends_as_it_would_have(tmp_path: Path) -> None:
    outlying = outlier_store(tmp_path / "store")
    runs = {name: run_of("topk", tmp_path / name) for name in ("old", "old and killed", "new")}
    with pytest.MonkeyPatch.context() as patch:
        # As earlier versions did: all tokens set the scale, and the config says nothing of it.
        patch.setattr(RunFolder, "may_record", staticmethod(lambda path, name: False))
        train([runs["old"]], outlying)
        train_until(40, runs["old and killed"], outlying)
    # Resumed together with a new run, each at its own scale.
    train([runs["old and killed"], runs["new"]], outlying)
    assert weights(tmp_path / "old") == weights(tmp_path / "old and killed") != weights(tmp_path / "new")
    scales = {name: load_sae(tmp_path / name / "sae")[1].input_scale for name in runs}
    assert scales["old"] == scales["old and killed"] < scales["new"] / 5
    # The others have unit mean norm: their root mean square norm is the square root of their width.
    assert scales["new"] == pytest.approx(outlying.d_in**-0.5, rel=0.02)
