"""``auto`` trains on Apple's GPUs only where a trial works; this machine need not have one."""

from __future__ import annotations

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.training import TrainingConfig, train, trial
from tests.training.test_training import CONFIGS, run_of, weights

MPS = torch.device("mps")
AUTO = TrainingConfig(device="auto")


@pytest.fixture
def picks_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    trial._say_once.cache_clear()
    monkeypatch.setattr(trial, "resolve_device", lambda name: MPS if name == "auto" else torch.device(name))


def _on_cpu(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
    """Let the CPU do what is to be tried on MPS, and multiply its numbers."""
    plain = trial._first_steps

    def first_steps(sae, training, n, device):
        tried, metrics = plain(sae, training, n, trial._CPU)
        return tried, metrics * (1 if device == trial._CPU else factor)

    monkeypatch.setattr(trial, "_first_steps", first_steps)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_can_be_tried(name: str, picks_mps, monkeypatch, capsys) -> None:
    _on_cpu(monkeypatch)
    assert trial.training_device([(CONFIGS[name], AUTO)], 8) == MPS
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has what is taken to fail")
def test_where_mps_fails_the_cpu_trains_and_one_line_says_why(
    picks_mps, store: ActivationStore, tmp_path, capsys
) -> None:
    run = run_of("topk", tmp_path / "auto", device="auto")
    train([run], store)
    train([run_of("topk", tmp_path / "again", device="auto")], store)
    said = [line for line in capsys.readouterr().err.splitlines() if "training on the CPU" in line]
    assert len(said) == 1 and "topk does not train on mps here (" in said[0] and len(said[0]) > 70
    train([run_of("topk", tmp_path / "cpu")], store)
    assert weights(tmp_path / "auto") == weights(tmp_path / "again") == weights(tmp_path / "cpu")


def test_one_sae_that_fails_takes_all_on_its_stream_to_the_cpu(picks_mps, monkeypatch, capsys) -> None:
    def fails(sae, *_) -> None:
        if sae.architecture == "relu":
            raise NotImplementedError("aten::_embedding_bag is not there\nmore lines")

    monkeypatch.setattr(trial, "_try_out", fails)
    pairs = [(CONFIGS[name], AUTO) for name in ("topk", "relu")]
    assert trial.training_device(pairs[:1], 8) == MPS
    assert trial.training_device(pairs, 8) == torch.device("cpu")
    assert capsys.readouterr().err == (
        "training on the CPU: relu does not train on mps here (aten::_embedding_bag is not there)\n"
    )


def test_wrong_numbers_count_as_failure(picks_mps, monkeypatch, capsys) -> None:
    _on_cpu(monkeypatch, factor=1.5)
    assert trial.training_device([(CONFIGS["topk"], AUTO)], 8) == torch.device("cpu")
    assert "losses differ" in capsys.readouterr().err


def test_a_device_that_is_named_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(trial, "_try_out", None)
    assert trial.training_device([(CONFIGS["topk"], TrainingConfig(device="cpu"))], 8) == torch.device("cpu")
    with pytest.raises(ConfigError, match="not usable here"):
        trial.training_device([(CONFIGS["topk"], TrainingConfig(device="cuda:99"))], 8)
