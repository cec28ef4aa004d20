"""notes.txt takes every number from final_info.json, is added to and never rewritten, and concludes no more than it may."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scansion.study import ArmInfo, read_final_info
from scansion.study.final_info import write_final_info
from scansion.study.notes import append_notes
from tests.study.conftest import Carried


@pytest.fixture
def home(carried: Carried, tmp_path: Path) -> Path:
    """The study's run folders without what is in the seeds' folders, which notes do not need."""
    for folder in carried.folders.values():
        (tmp_path / folder.name).mkdir()
        for name in ("plan.json", "final_info.json"):
            shutil.copy(folder / name, tmp_path / folder.name / name)
    return tmp_path


def test_a_finished_study_has_an_entry_a_run(carried: Carried) -> None:
    notes = (carried.home / "notes.txt").read_text()
    assert re.findall(r"^(run_\d) \[[0-9a-f]{12}\]$", notes, re.MULTILINE) == ["run_0", "run_1", "run_2"]
    assert "plain: this is the baseline" not in notes and "    this is the baseline that other runs" in notes
    assert "differs from plain in: sae.mask.family: none -> random_hard" in notes
    assert "no conclusion: degenerate: no training step was taken" in notes
    assert "at one seed, which does not show how much seeds vary" in notes


def edit(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write another final_info.json, with its checksums."""
    arms = {name: ArmInfo.model_validate(change(info.model_dump())) for name, info in read_final_info(run).items()}
    write_final_info(run, arms)


def test_numbers_come_from_the_file(carried: Carried, home: Path) -> None:
    append_notes(home / "run_0")
    fve = read_final_info(home / "run_0")["plain"].means["fve"]
    assert f"FVE, all tokens {fve:.3f}" in (home / "notes.txt").read_text()
    new = {"means": 0.12345, "values": [0.12345]}
    edit(home / "run_0", lambda arm: {**arm, **{part: {**arm[part], "fve": value} for part, value in new.items()}})
    append_notes(home / "run_0")
    assert "FVE, all tokens 0.123" in (home / "notes.txt").read_text()


def test_entries_are_added_once_and_earlier_ones_stay(home: Path) -> None:
    (home / "notes.txt").write_text("a thought of my own\n")
    append_notes(home / "run_0")
    once = (home / "notes.txt").read_text()
    append_notes(home / "run_0")
    assert (home / "notes.txt").read_text() == once
    append_notes(home / "run_1")
    both = (home / "notes.txt").read_text()
    assert both.startswith(once) and once.startswith("a thought of my own\n") and both != once
    assert [path.name for path in home.iterdir() if "partial" in path.name] == []


def test_an_unfinished_run_has_no_entry(home: Path) -> None:
    edit(home / "run_1", lambda arm: {**arm, "status": "unfinished"})
    append_notes(home / "run_1")
    assert not (home / "notes.txt").exists()


def test_without_the_baseline_nothing_is_compared(home: Path) -> None:
    shutil.rmtree(home / "run_0")
    append_notes(home / "run_1")
    notes = (home / "notes.txt").read_text()
    assert (
        "no comparison: the plan's first run is not in the same folder as this one" in notes
        and "detectable" not in notes
    )
