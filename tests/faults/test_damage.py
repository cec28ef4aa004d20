"""Files of every kind, damaged in every way: the result is right, or there is an error that names the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from scansion.errors import DamagedError, ScansionError
from scansion.records import read_yaml, write_yaml
from scansion.study import StudyRecord
from scansion.study.final_info import read_final_info, write_final_info
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


def test_another_runs_figures_are_not_taken_for_this_runs(
    workspace: Workspace, right: dict[str, str], tmp_path: Path
) -> None:
    copy = workspace.copy(tmp_path / "copy")
    here, there = (copy.study / run / "final_info.json" for run in ("run_0", "run_1"))
    here.write_bytes(there.read_bytes())
    with pytest.raises(DamagedError, match=r"run_0/final_info.json is not of this run: it has 'hard', which is run 1"):
        StudyRecord.open(copy.study)
    found = use(copy)
    assert found["run study again"] == right["run study again"]
    assert StudyRecord.open(copy.study).arms[0].info.status == "ok"


def test_figures_of_a_plan_that_the_run_never_had_are_not_taken_for_its_own(
    workspace: Workspace, tmp_path: Path
) -> None:
    copy = workspace.copy(tmp_path / "copy")
    run = copy.study / "run_0"
    infos = read_final_info(run)
    other = {
        name: info.model_copy(update={"provenance": {**info.provenance, "plan": "0" * 32}})
        for name, info in infos.items()
    }
    write_final_info(run, other)
    with pytest.raises(DamagedError, match=r"which is run 0 of the plan 000000000000"):
        StudyRecord.open(copy.study)


@pytest.mark.parametrize("name", ["core", "synthetic", "position"])
def test_another_saes_results_are_not_taken_for_this_ones(
    name: str, workspace: Workspace, right: dict[str, str], tmp_path: Path
) -> None:
    copy = workspace.copy(tmp_path / "copy")
    here, there = (copy.study / run / f"seed_0/evals/{name}.json" for run in ("run_0", "run_1"))
    here.write_bytes(there.read_bytes())
    with pytest.raises(DamagedError, match=r"evals/\w+.json holds results of another SAE than the one in"):
        StudyRecord.open(copy.study).arms[0].evaluations()
    use(copy)
    assert use(copy)["read study"] == right["read study"]


def test_a_yaml_file_that_is_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_yaml(file, {"name": "x", "training": {"seed": 1, "tokens": 5}})
    whole = file.read_bytes()
    for kept in range(len(whole.rstrip())):
        file.write_bytes(whole[:kept])
        with pytest.raises(ScansionError, match=r"config\.yaml"):
            read_yaml(file)


@pytest.mark.parametrize(
    "line", ["null: 1", "1: 1", "when: 2020-01-01", "'n': !!set {a}", "? [a, b]\n: 1", "'n': .nan"]
)
def test_values_that_json_has_not_are_damage_of_a_sealed_yaml_file(line: str, tmp_path: Path) -> None:
    write_yaml(tmp_path / "config.yaml", {"name": "x", "seed": 1})
    with (tmp_path / "config.yaml").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ScansionError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")
