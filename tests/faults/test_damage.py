"""Files of every kind, damaged in every way: the result is right, or there is an error that names the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.workspace import DAMAGES, Workspace, make_workspace, outcome, use


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("faults") / "whole")


@pytest.fixture(scope="module")
def right(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = use(workspace.copy(tmp_path_factory.mktemp("faults") / "copy"))
    assert not any(result.startswith("error") for result in found.values())
    return found


def test_the_harness_sees_a_change_that_is_not_noticed(workspace: Workspace, right: dict[str, str]) -> None:
    name = next(iter(right))
    assert outcome({**right, name: "another result"}, right) == "silent"
    assert outcome({**right, name: "error: damaged"}, right) == "clear error"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(4))
def test_no_damage_is_read_silently(
    damage: str, seed: int, workspace: Workspace, right: dict[str, str], tmp_path: Path
) -> None:
    draw = random.Random(f"{damage} {seed}")
    copy = workspace.copy(tmp_path / "copy")
    file = draw.choice(copy.files())
    how = DAMAGES[damage](file, draw, copy.files())
    found = use(copy)
    assert outcome(found, right) != "silent", f"{file.relative_to(copy.home)}: {how}"
