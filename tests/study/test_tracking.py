"""A study can be given to an experiment tracker as often as one likes; its folders stay as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scansion.errors import ConfigError
from scansion.study import StudyRecord
from scansion.study.tracking import import_study
from tests.study.conftest import Carried


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a tracker of either name is called with."""
    made: list[tuple[str, Any]] = []
    tracker = SimpleNamespace(
        init=lambda **settings: made.append(("init", settings)),
        log=lambda figures, step: made.append(("log", (step, figures))),
        finish=lambda: made.append(("finish", None)),
        delete_project=lambda project, force: made.append(("delete", (project, force))),
    )
    for name in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, tracker)
    return made


def test_every_line_and_figure_is_given_once(carried: Carried, calls: list[tuple[str, Any]]) -> None:
    assert import_study(StudyRecord.open(carried.home), "trackio") == 3
    assert calls[0] == ("delete", ("scansion-tiny", True)), "an earlier import is replaced"
    kinds = [kind for kind, _ in calls[1:]]
    assert kinds.count("init") == kinds.count("finish") == 3
    first = calls[2 : kinds.index("finish") + 1]
    lines = (carried.seed_folder(0) / "metrics.jsonl").read_text().splitlines()
    assert len(first) == len(lines) + 1
    assert first[0][1][0] == json.loads(lines[0])["step"] and "train/loss" in first[0][1][1]
    assert first[-1][1][1]["final/fve"] == carried.records[0].info.means["fve"]


def test_wandb_is_called_alike_and_stays_offline(carried: Carried, calls: list[tuple[str, Any]]) -> None:
    import_study(StudyRecord.open(carried.home), "wandb")
    settings = calls[0][1]
    assert (settings["mode"], settings["dir"]) == ("offline", str(carried.home))
    assert settings["config"]["sae"]["d_sae"] == 32 and settings["name"] == "plain, seed 0"


def test_a_missing_tracker_is_one_clear_line(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="trackio is not installed; pip install trackio"):
        import_study(StudyRecord.open(carried.home), "trackio")


def test_the_real_trackio_keeps_the_runs(carried: Carried) -> None:
    trackio = pytest.importorskip("trackio", reason="the optional extra 'track' is not installed")
    import_study(StudyRecord.open(carried.home), "trackio")
    import_study(StudyRecord.open(carried.home), "trackio")
    runs = trackio.Api().runs("scansion-tiny")
    assert sorted(run.name for run in runs) == ["masked, seed 0", "plain, seed 0", "untrained, seed 0"]


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_training_is_shown_while_it_goes_on(
    run, store, tmp_path: Path, calls: list[tuple[str, Any]], tracker: str
) -> None:
    flags = ["--d-sae", 32, "--k", 4, "--tokens", 1500, "--batch-tokens", 75, "--log-every", 5, "--device", "cpu"]
    status, _, err = run("train", store.folder, *flags, "--track", tracker, "--out", tmp_path / "x")
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [kind for kind, _ in calls] == ["init", *(["log"] * len(lines)), "finish"]
    assert calls[0][1]["name"] == "x" and calls[0][1]["config"]["sae"]["d_sae"] == 32
    for (_, (step, shown)), line in zip(calls[1:-1], lines, strict=True):
        assert step == line["step"] and shown["train/loss"] == line["loss"] and "train/step" not in shown


def test_a_tracker_that_is_not_there_is_missed_before_anything_is_done(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    status, _, err = run("study", "run", "demo", "--track", "wandb", "--out", tmp_path / "out")
    assert status == 2 and "wandb is not installed; pip install wandb" in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
