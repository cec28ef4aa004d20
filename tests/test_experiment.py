"""``python experiment.py --out_dir=run_i`` runs entry i of the plan, or says in one line why it cannot."""

from __future__ import annotations

import json
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
    settings = {**settings_of(lm_folder, documents), "sparse_probing": None}
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
    assert sorted(path.name for path in folder.parent.iterdir()) == ["notes.txt", "run_1"]
    assert "no comparison: the plan's first run is not beside this one" in (folder.parent / "notes.txt").read_text()


@pytest.mark.parametrize("name", ["results", "run_", "run_1a", "run1", "run_-1"])
def test_another_name_is_refused(run, tmp_path: Path, name: str) -> None:
    status, _, err = run(f"--out_dir={tmp_path / name}")
    assert status == 2
    assert err.splitlines()[-1] == (f"experiment.py: error: --out_dir should end in run_0, run_1, ..., not {name!r}")
    assert not (tmp_path / name).exists()


def test_a_number_past_the_plan_is_refused(run, tmp_path: Path) -> None:
    status, _, _ = run(f"--out_dir={tmp_path / 'run_3'}")
    assert status == "error: the plan 'tiny' has no run 3; it has 0 to 2"
    assert not (tmp_path / "run_3").exists()


def test_the_folder_must_be_given_and_nothing_else(run) -> None:
    assert run()[0] == 2
    assert run("--out_dir=run_0", "--lr=3")[0] == 2


def test_it_runs_from_any_folder(tmp_path: Path) -> None:
    called = subprocess.run(
        [sys.executable, experiment.__file__, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert called.returncode == 0 and "run_0, run_1" in called.stdout
