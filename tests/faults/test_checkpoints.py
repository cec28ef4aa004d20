"""A damaged checkpoint is left for the one before it; the run ends with the weights it would have had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scansion.records import SEAL, write_json
from tests.faults.workspace import Workspace, make_workspace, use


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture(scope="module")
def right(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    return use(workspace.copy(tmp_path_factory.mktemp("checkpoints") / "copy"))["go on training"]


def flip(checkpoint: Path) -> None:
    path = checkpoint / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def another_step(checkpoint: Path) -> None:
    """Sealed again, so that not its checksum but what it says must be noticed."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state[SEAL]
    write_json(checkpoint / "state.json", {**state, "step": 10**9})


def of_another_run(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    del state[SEAL]
    write_json(checkpoint / "state.json", {**state, "run": "0" * 32})


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": flip,
    "another step": another_step,
    "another run": of_another_run,
    "no state": lambda checkpoint: (checkpoint / "state.json").unlink(),
    "no tensors": lambda checkpoint: (checkpoint / "state.safetensors").unlink(),
    "not JSON": lambda checkpoint: (checkpoint / "state.json").write_text("{"),
    "another form": lambda checkpoint: (checkpoint / "state.json").write_text("[3]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("n", [1, 2])
def test_training_goes_on_from_what_is_whole(
    damage: str, n: int, workspace: Workspace, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = workspace.copy(tmp_path / "copy")
    checkpoints = sorted((copy.killed / "checkpoints").glob("step-*"), reverse=True)
    assert len(checkpoints) == 2
    for checkpoint in checkpoints[:n]:
        DAMAGES[damage](checkpoint)
    assert use(copy)["go on training"] == right
    said = capsys.readouterr().err
    assert said.count("training goes on from the checkpoint before it") == 1
    assert said.count("training starts again: there is no other checkpoint") == n - 1
    assert all(checkpoint.name in said for checkpoint in checkpoints[:n])
