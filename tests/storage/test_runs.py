"""Runs whose folder is a URL: another machine resumes them from their last checkpoint, and results are uploaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from scansion.activations.publishing import publish
from scansion.mirroring import fetched, send
from scansion.remote import local_copy
from scansion.sae import TopKConfig, load_sae
from scansion.training import TrainingConfig, TrainingRun, train
from tests.storage.conftest import change_object, names_in

Move = Callable[[], None]
SAE = TopKConfig(d_sae=32, k=4)
# A checkpoint after every step.
SETTINGS = TrainingConfig(tokens=1_200, batch_tokens=64, device="cpu", checkpoint_seconds=0, log_every=5)


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[TrainingRun, dict[str, object]], None]:
    def on_metrics(run: TrainingRun, line: dict[str, object]) -> None:
        if line["step"] == step:
            raise Killed

    return on_metrics


def test_another_machine_resumes_a_run_to_the_same_bytes(store, bucket, elsewhere: Move, tmp_path: Path) -> None:
    train([TrainingRun("one", tmp_path / "whole", SAE, SETTINGS)], store)
    url = f"{bucket}/runs/one"
    with pytest.raises(Killed):
        train([TrainingRun("one", fetched(url), SAE, SETTINGS)], store, killed_at(15))
    assert names_in(url) == {"config.yaml", "metrics.jsonl"} | {
        f"checkpoints/step-{step:09d}/{file}" for step in (13, 14) for file in ("state.safetensors", "state.json")
    }
    first = local_copy(url)
    elsewhere()
    folder = fetched(url)
    assert folder != first
    train([TrainingRun("one", folder, SAE, SETTINGS)], store)
    for name in ("sae/sae_weights.safetensors", "sae/cfg.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert name in names_in(url)
    times = re.compile(r'"(seconds|step_ms|checksum)": [^,}]+')
    there, here = ((each / "metrics.jsonl").read_text() for each in (folder, tmp_path / "whole"))
    assert times.sub("", there) == times.sub("", here)
    elsewhere()
    sae, _ = load_sae(url)
    assert sae.d_sae == 32 and not (local_copy(url) / "checkpoints").exists()


def test_what_changed_there_is_fetched_and_what_changed_here_is_sent(bucket, elsewhere: Move, requests) -> None:
    url = f"{bucket}/runs/one"
    folder = fetched(url)
    (folder / "evals").mkdir(parents=True)
    (folder / "evals" / "core.json").write_text("{}")
    (folder / "notes.txt").write_text("first")
    send(folder)
    change_object(f"{url}/notes.txt", lambda text: text.extend(b", then there"))
    (folder / "evals" / "core.json").write_text('{"here": 1}')
    assert fetched(url) == folder
    assert (folder / "notes.txt").read_text() == "first, then there"
    assert (folder / "evals" / "core.json").read_text() == '{"here": 1}'
    requests.clear()
    send(folder)
    assert [key for method, key, _ in requests if method == "put_object"] == ["runs/one/evals/core.json"]
    elsewhere()
    assert (fetched(url) / "evals" / "core.json").read_text() == '{"here": 1}'


def test_a_run_and_its_results_stay_on_object_storage(run, store, bucket, elsewhere: Move, tmp_path: Path) -> None:
    publish(store, f"{bucket}/stores/train")
    arguments = ("--tokens", 2_000, "--d-sae", 32, "--k", 4, "--batch-tokens", 64, "--device", "cpu")
    status, out, err = run("train", f"{bucket}/stores/train", *arguments, "--out", f"{bucket}/runs/topk")
    assert status == 0, err
    assert f"next: scansion eval {bucket}/runs/topk --held-out {bucket}/stores/held_out" in out
    elsewhere()
    status, out, err = run("train", f"{bucket}/stores/train", *arguments, "--out", f"{bucket}/runs/topk")
    assert status == 0 and "already trained" in err, err
    elsewhere()
    status, out, err = run("eval", f"{bucket}/runs/nothing", "--held-out", f"{bucket}/stores/train")
    assert status == 2 and "is not a run" in err
