"""One SAE on several ranks is the SAE that one process trains, to rounding; it is killed and resumed; and counts its bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.errors import TrainingError
from scansion.masks import BandMaskConfig, SoftMaskConfig
from scansion.sae import SAEConfig, load_sae
from scansion.sae.architectures.batch_topk import BatchTopKConfig
from scansion.sae.architectures.gated import GatedConfig
from scansion.sae.architectures.relu import ReluConfig
from scansion.sae.architectures.topk import TopKConfig
from scansion.training import dead, train
from scansion.training.run_folder import read_metrics
from tests.distributed.jobs import run_of, start

D_IN, L, D_SAE = 16, 8, 64
BANDS = BandMaskConfig(count=4, shared=0.5)
TOPK = TopKConfig(d_sae=D_SAE, k=6, mask=BANDS)
OTHERWISE = ("seconds", "step_ms", "ranks", "divided", "way", "precision")
"""In a line of metrics, what is no figure of the training."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(L, 24, D_IN, generator=generator)
    strength = torch.rand(96, L, 24, generator=generator).pow(6)
    acts = torch.einsum("clf,lfd->cld", strength, causes) + 0.3
    return ActivationStore.from_tensors(acts, tmp_path_factory.mktemp("own") / "train", shard_bytes=20_000)


def metrics(folder: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in line.items() if name not in OTHERWISE} for line in read_metrics(folder)]


def weights(folder: Path) -> bytes:
    return (folder / "sae" / "sae_weights.safetensors").read_bytes()


def require_same(ranks: Path, one: Path, n_steps: int = 50) -> None:
    """Every line of metrics and every weight is equal to rounding."""
    here, there = metrics(ranks), metrics(one)
    assert len(here) == len(there) == n_steps
    for line, expected in zip(here, there, strict=True):
        assert line == pytest.approx(expected, rel=2e-4, abs=1e-5), line["step"]
    (sae, _), (expected, _) = load_sae(ranks), load_sae(one)
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=2e-3, atol=2e-4, msg=name)


def relu(mask: BandMaskConfig) -> ReluConfig:
    return ReluConfig(d_sae=D_SAE, mask=mask, l1_coefficient=3.0)


@pytest.mark.parametrize(
    ("sae", "size", "divided"),
    [
        (TOPK, 2, "bands"),
        (TOPK, 4, "bands"),
        (relu(BandMaskConfig(preset="static_slicing", count=4)), 2, "bands"),
        (relu(BandMaskConfig(count=4, shared=0.25)), 2, "bands"),
        (TopKConfig(d_sae=D_SAE, k=6), 2, "tokens"),
        (GatedConfig(d_sae=D_SAE, mask=SoftMaskConfig(shared=0.25)), 4, "tokens"),
    ],
    ids=["topk 2", "topk 4", "relu slices", "relu shared", "no mask", "gated soft"],
)
def test_ranks_train_the_sae_of_one_process(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sae: SAEConfig, size: int, divided: str
) -> None:
    revived: list[int] = []
    point_at = dead.point_at
    monkeypatch.setattr(dead, "point_at", lambda *given: revived.append(len(given[3])) or point_at(*given))
    # Features are soon dead, so that auxiliary losses and revivals have much to do.
    one, run = (run_of(tmp_path / name, sae, dead_after_tokens=16) for name in ("one", "ranks"))
    train([one], store)
    assert start(size, run, store.folder) == [0] * size
    require_same(run.folder, one.folder)
    if sae.architecture != "gated":
        assert max(line["dead"] for line in metrics(run.folder)) > 0
    if sae.architecture == "relu":
        assert sum(revived) > 5
    last = read_metrics(run.folder)[-1]
    assert (last["ranks"], last["divided"]) == (size, divided)
    assert not (run.folder / "checkpoints").exists()


def test_a_process_group_that_is_there_is_used_and_left(store: ActivationStore, tmp_path: Path) -> None:
    here, there = (run_of(tmp_path / name, TOPK) for name in ("here", "there"))
    assert start(2, here, store.folder) == start(2, there, store.folder, group_is_there=True) == [0, 0]
    assert weights(here.folder) == weights(there.folder)


FEATURES = TopKConfig(d_sae=D_SAE, k=6)


@pytest.mark.parametrize("size", [2, 4])
def test_features_are_divided(store: ActivationStore, tmp_path: Path, size: int) -> None:
    one, run = (run_of(tmp_path / name, FEATURES, dead_after_tokens=16) for name in ("one", "ranks"))
    train([one], store)
    log = tmp_path / "log"
    assert start(size, run, store.folder, log=log, divide="features") == [0] * size
    require_same(run.folder, one.folder)
    assert max(line["dead"] for line in metrics(run.folder)) > 0
    assert read_metrics(run.folder)[-1]["divided"] == "features"
    # The k largest of 64 tokens, the reconstruction, the gradient of the bias; 8 bytes of dead features, 16 of metrics.
    n_tokens, n_auxiliary = 64, D_IN // 2
    least = 4 * n_tokens * (6 + D_IN) + 4 * (1 + D_IN) + 8 + 16
    with_dead = least + 4 * n_tokens * (n_auxiliary + D_IN)
    for rank in range(size):
        counted = [
            int(each) - 8 for each in (log / str(rank)).read_text().split()
        ]  # dead features, for the line of metrics
        assert set(counted) == {least, with_dead} and counted[0] == least


def test_a_job_divided_by_features_resumes_on_another_number_of_ranks(store: ActivationStore, tmp_path: Path) -> None:
    settings = {"checkpoint_seconds": 0, "dead_after_tokens": 640}
    one, run = (run_of(tmp_path / name, FEATURES, **settings) for name in ("one", "run"))
    train([one], store)
    assert start(4, run, store.folder, die=(2, 10), divide="features") != [0] * 4
    log = tmp_path / "log"
    before = sorted((run.folder / "checkpoints").iterdir())
    assert start(2, run, store.folder, log=log) == [2, 2]
    assert "the job was started with --divide features" in (log / "0").read_text()
    assert sorted((run.folder / "checkpoints").iterdir()) == before
    assert start(2, run, store.folder, divide="features") == [0, 0]
    require_same(run.folder, one.folder)


@pytest.mark.parametrize(
    ("sae", "why"),
    [
        (TOPK, "it has a mask"),
        (ReluConfig(d_sae=D_SAE), "its architecture is relu"),
        (TopKConfig(d_sae=D_SAE, k=40), "a rank would have 32 features, fewer than k"),
    ],
)
def test_features_that_cannot_be_divided(store: ActivationStore, tmp_path: Path, sae: SAEConfig, why: str) -> None:
    run = run_of(tmp_path / "run", sae)
    assert start(2, run, store.folder, log=tmp_path / "log", divide="features") == [2, 2]
    assert f"cannot be divided by features over 2 ranks: {why}" in (tmp_path / "log" / "0").read_text()


@pytest.mark.parametrize(("sae", "replicated"), [(TOPK, 32), (TopKConfig(d_sae=D_SAE, k=6), 64)])
def test_a_step_sums_what_the_documentation_says(
    store: ActivationStore, tmp_path: Path, sae: SAEConfig, replicated: int
) -> None:
    run = run_of(tmp_path / "run", sae, tokens=640, log_every=100)
    assert start(2, run, store.folder, log=tmp_path / "log") == [0, 0]
    expected = 4 * (1 + replicated * (2 * D_IN + 1) + D_IN) + 8 * (9 + D_IN + replicated)
    for rank in ("0", "1"):
        counted = [int(each) for each in (tmp_path / "log" / rank).read_text().split()]
        assert counted[:-1] == [expected] * 9
        assert counted[-1] == expected + 8  # dead features, for the line of metrics


def test_a_killed_rank_and_a_restart_end_with_the_same_bytes(store: ActivationStore, tmp_path: Path) -> None:
    settings = {"tokens": 1280, "checkpoint_seconds": 0, "dead_after_tokens": 16, "log_every": 3}
    sae = relu(BANDS)
    whole, killed, moved = (run_of(tmp_path / name, sae, **settings) for name in ("whole", "killed", "moved"))
    assert start(2, whole, store.folder) == [0, 0]
    assert start(2, killed, store.folder, die=(1, 13), log=tmp_path / "log") == [2, -9]
    assert "rank 0 of 2 lost the others" in (tmp_path / "log" / "0").read_text()
    assert sorted(path.name for path in (killed.folder / "checkpoints").iterdir()) == [
        "step-000000012",
        "step-000000013",
    ]
    with pytest.raises(TrainingError, match=r"was written by 2 ranks: resume the run with torchrun"):
        train([killed], store)
    moved.folder.mkdir()
    subprocess.run(["cp", "-r", f"{killed.folder}/.", moved.folder], check=True)

    assert start(2, killed, store.folder) == [0, 0]
    assert weights(killed.folder) == weights(whole.folder)
    assert metrics(killed.folder) == metrics(whole.folder)


def test_a_job_resumes_on_another_number_of_ranks(store: ActivationStore, tmp_path: Path) -> None:
    settings = {"checkpoint_seconds": 0, "dead_after_tokens": 640}
    one, run = (run_of(tmp_path / name, TOPK, **settings) for name in ("one", "run"))
    train([one], store)
    assert start(4, run, store.folder, die=(2, 10)) != [0] * 4
    assert start(1, run, store.folder, die=(0, 20)) == [-9]
    newest = max((run.folder / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    (newest / next(iter(state["tensors"]))).write_bytes(b"damaged")
    assert start(2, run, store.folder) == [0, 0]
    require_same(run.folder, one.folder)


def test_what_cannot_be_divided_is_refused_before_anything_is_read(store: ActivationStore, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", BatchTopKConfig(d_sae=D_SAE, k=6))
    bare = tmp_path / "store"
    subprocess.run(["cp", "-r", store.folder, bare], check=True)
    for shard in bare.glob("shard-*"):
        shard.write_bytes(shard.read_bytes()[:-8] + b"\xff" * 8)  # an error if it is read
    assert start(2, run, bare, log=tmp_path / "log") == [2, 2]
    assert (tmp_path / "log" / "0").read_text() == (
        "ConfigError: this SAE cannot be trained on 2 ranks: batch_topk compares the tokens of a batch; train it in one "
        "process, or choose another (docs/ranks.md)"
    )
    assert (tmp_path / "log" / "1").read_text() == ""
    assert not run.folder.exists()


def test_torchrun_runs_the_command(store: ActivationStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train_it = ["-m", "scansion", "train", str(store.folder), "--out", str(out), "--d-sae", "64", "--k", "6"]
    settings = ["--mask", "bands, count: 4, shared: 0.5", "--tokens", "640", "--device", "cpu", "--use-position-0"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.run([*command, *train_it, *settings], capture_output=True, text=True, env=one_thread, timeout=300)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("trained: ") == 1
    assert "4 bands, with their features, divided over 2 ranks" in job.stderr
    assert load_sae(out)[0].d_sae == 64
