"""``python experiment.py --out_dir=run_i`` runs entry i of the plan, or says in one line why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import experiment
from tests.study.conftest import settings_of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys, lm_folder: Path, documents: Path, tmp_path: Path):
    """``run("--out_dir=run_0")`` -> (exit status or message, stdout, stderr), on a tiny plan."""
    settings = settings_of(lm_folder, documents)
    del settings["evaluations"]["sparse_probing"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(experiment, "PLAN", tmp_path / "plan.yaml")
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["experiment.py", *arguments])
        status: object = 0
        try:
            experiment.main()
        except SystemExit as exit_:
            status = exit_.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_run_writes_its_figures_where_it_was_told(run, tmp_path: Path) -> None:
    folder = tmp_path / "somewhere" / "run_1"
    status, out, _ = run(f"--out_dir={folder}")
    assert status == 0 and f"wrote {folder / 'final_info.json'}" in out
    info = json.loads((folder / "final_info.json").read_text())
    assert list(info) == ["masked"] and info["masked"]["means"]["fve"] > 0
    assert "name: masked" in (folder / "seed_0/config.yaml").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "notes.txt", "run_1"]
    notes = (folder.parent / "notes.txt").read_text()
    assert "no comparison: the plan's first run is not in the same folder as this one" in notes


@pytest.mark.parametrize("name", ["results", "run_", "run_1a", "run1", "run_-1"])
def test_another_name_is_refused(run, tmp_path: Path, name: str) -> None:
    status, _, err = run(f"--out_dir={tmp_path / name}")
    assert status == 2
    assert err.splitlines()[-1] == (f"experiment.py: error: --out_dir should end in run_0, run_1, ..., not {name!r}")
    assert not (tmp_path / name).exists()


def test_a_number_past_the_plan_is_refused(run, tmp_path: Path) -> None:
    status, _, err = run(f"--out_dir={tmp_path / 'run_3'}")
    assert status == 2 and err == "error: the plan 'tiny' has no run 3; it has 0 to 2\n"
    assert not (tmp_path / "run_3").exists()


def test_the_folder_must_be_given_and_nothing_else(run) -> None:
    assert run()[0] == 2
    assert run("--out_dir=run_0", "--lr=3")[0] == 2


def test_runs_at_the_same_time_share_a_harvest_and_keep_every_note(
    tmp_path: Path, lm_folder: Path, documents: Path
) -> None:
    settings = {**settings_of(lm_folder, documents), "evaluations": {"core": {"loss_contexts": 4}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    code = "import sys, experiment; experiment.PLAN = sys.argv.pop(1); experiment.main()"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "plan.yaml"), f"--out_dir={tmp_path / f'run_{index}'}"],
            env={**os.environ, "SCANSION_CACHE": str(tmp_path / "cache")},
            cwd=Path(experiment.__file__).parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1, 2, 1)
    ]
    said = [run.communicate()[1] for run in runs]
    assert runs[2].returncode == 3, "it is degenerate: it takes no training step"
    refused = [index for index, run in enumerate(runs) if run.returncode == 2]
    assert refused in ([], [1], [3]), said  # of the two that share a folder
    for index in refused:
        assert "is carrying out the study tiny there since" in said[index].splitlines()[-1], said
    notes = (tmp_path / "notes.txt").read_text()
    assert [notes.count(f"run_{index} [") for index in range(3)] == [1, 1, 1]
    assert sum("harvesting" in line and "tokens" in line for text in said for line in text.splitlines()) == 2
    assert all(json.loads((tmp_path / f"run_{i}/final_info.json").read_text()) for i in range(3))


def test_it_runs_from_any_folder(tmp_path: Path) -> None:
    called = subprocess.run(
        [sys.executable, experiment.__file__, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert called.returncode == 0 and "run_0, run_1" in called.stdout
