"""The audit computes what tables say again, finds whatever was changed in them, and shares no code with them."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scansion.evals.statistics import TextGroups
from scansion.study import ArmInfo, audit, compare
from scansion.study.audit import audit as audit_folder
from scansion.study.compare.tables import write_comparison
from scansion.study.final_info import write_final_info
from tests.study.conftest import Carried

RESULTS = Path(__file__).parents[2] / "results"
SEEDS = [0, 1, 2, 3]


def arm(
    generator: np.random.Generator, level: float, seeds: list[int], text: bool, steps: int | None = None
) -> ArmInfo:
    """An arm with figures by text and without, one missing at a seed and one the same at all."""
    by_text: dict[str, dict[int, TextGroups]] = {"fve": {}, "position_share_lifted": {}}
    values: dict[str, list[float | None]] = {"fve": [], "position_share_lifted": []}
    for seed in seeds:
        below = generator.uniform(50, 60, 20)
        above = below * (level + generator.normal(0, 0.02, 20))
        by_text["fve"][seed] = TextGroups.of_ratio(above, below)
        values["fve"].append(float(above.sum() / below.sum()))
        without = level / 100 + generator.normal(0, 1e-5, 10)
        by_text["position_share_lifted"][seed] = TextGroups.of_jackknife(without)
        values["position_share_lifted"].append(float(without.mean()))
    values |= {
        "l0": [32.0 + 10 * level] * len(seeds),
        "dead_share": generator.uniform(0, 0.1, len(seeds)).tolist(),
        "ce_loss_recovered": [None, *generator.uniform(0.8, 0.9, len(seeds) - 1).tolist()],
    }
    known = {name: [v for v in its if v is not None] for name, its in values.items()}
    return ArmInfo(
        means={name: float(np.mean(its)) if its else None for name, its in known.items()},
        stderrs={n: float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else None for n, v in known.items()},
        values=values, seeds=seeds, status="ok", costs={"train_seconds": 10 * level, "step_ms": 1.0},
        by_text=by_text if text else {}, provenance={"sae": {"d_sae": 64}, "steps": steps},
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    base = arm(generator, 0.8, SEEDS, True)
    infos = {
        "base": base,
        "placebo": base,
        "worse | much": arm(generator, 0.6, SEEDS, True),
        "near": arm(generator, 0.799, SEEDS, True),
        "fewer": arm(generator, 0.7, [0, 2], True),
        "one": arm(generator, 0.7, [1], True, steps=99),
        "old": arm(generator, 0.75, SEEDS, False),
    }
    write_comparison(compare(infos), infos, tmp_path)
    (tmp_path / "run_0").mkdir()
    write_final_info(tmp_path / "run_0", infos)
    return tmp_path


def test_committed_results_are_as_computed_again() -> None:
    found = audit_folder(RESULTS)
    assert found.differences == []
    assert found.checked > 3_000


def test_what_was_written_is_as_computed_again(results: Path) -> None:
    found = audit_folder(results)
    assert found.differences == [] and found.not_checked == []
    assert found.checked > 500


def test_a_study_that_was_carried_out_is_as_computed_again(carried: Carried) -> None:
    found = audit_folder(carried.home)
    assert found.differences == [] and found.checked > 100
    sums = json.loads((carried.folders[1] / "by_text.json").read_text())["arms"]["masked"]
    assert {"fve_without_outliers", "ce_loss_recovered", "sae_test_accuracy_gain", "position_share_equal_l0"} <= set(
        sums
    )


def set_at(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """Adds a thousandth, or a new value where there was none, at a place in JSON."""

    def change(values: dict[str, Any]) -> None:
        part: Any = values
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = 0.5 if part[path[-1]] is None else part[path[-1]] * 1.001

    return change


FIGURE = ("arms", 2, "figures", "fve")
DIFFERENCE = ("arms", 2, "differences", "fve")


@pytest.mark.parametrize(
    "path",
    [
        (*FIGURE, "value"), (*FIGURE, "low"), (*DIFFERENCE, "estimate", "high"), (*DIFFERENCE, "p"),
        (*DIFFERENCE, "p_holm"), (*DIFFERENCE, "seeds", 1), ("arms", 1, "differences", "fve", "p"),
        ("arms", 2, "differences", "dead_share", "estimate", "low"), ("runs", "base", "means", "fve"),
        ("runs", "base", "stderrs", "dead_share"), ("runs", "near", "values", "fve", 2),
        ("arms", 5, "figures", "fve", "low"), ("arms", 2, "figures", "position_share_lifted", "high"),
    ],
)  # fmt: skip
def test_a_changed_figure_is_found(results: Path, path: tuple[str | int, ...]) -> None:
    file = results / "comparison.json"
    values = json.loads(file.read_text())
    set_at(*path)(values)
    file.write_text(json.dumps(values))
    assert audit_folder(results).differences


def test_what_could_be_detected_and_fronts_are_checked(results: Path) -> None:
    file = results / "comparison.json"
    values = json.loads(file.read_text())
    values["arms"][2]["differences"]["fve"]["detectable"] *= 1.01
    values["fronts"][0]["arms"].pop()
    file.write_text(json.dumps(values))
    found = " ".join(audit_folder(results).differences)
    assert "detectable" in found and "front of" in found


@pytest.mark.parametrize(
    ("what", "becomes"), [(r"0\.[56](\d\d) \[", r"0.9\1 ["), (r" \*", ""), (r"\| 0\.(\d+) \[", r"| 1.\1 [")]
)
def test_a_changed_table_is_found(results: Path, what: str, becomes: str) -> None:
    file = results / "comparison.md"
    text = file.read_text()
    changed = re.sub(what, becomes, text, count=1)
    assert changed != text
    file.write_text(changed)
    (line, *_) = audit_folder(results).differences
    assert "comparison.md: " in line and "computed again" in line


def test_a_changed_sum_over_text_and_a_changed_mean_are_found(results: Path) -> None:
    file = results / "by_text.json"
    values = json.loads(file.read_text())
    values["vectors"][0] = values["vectors"][0].replace("4", "5", 1)
    file.write_text(json.dumps(values))
    assert any("from its sums over text" in line for line in audit_folder(results).differences)
    info = results / "run_0" / "final_info.json"
    values = json.loads(info.read_text())
    values["base"]["means"]["fve"] += 0.01
    info.write_text(json.dumps(values))
    assert any("final_info.json: base: fve: mean" in line for line in audit_folder(results).differences)


def test_a_run_that_is_short_and_not_marked_is_found(results: Path) -> None:
    assert "| one (short) |" in (results / "comparison.md").read_text()
    said = json.loads((results / "comparison.json").read_text())
    said["runs"]["one"]["provenance"]["steps"] = 1000
    (results / "comparison.json").write_text(json.dumps(said))
    assert any("one: short" in difference for difference in audit_folder(results).differences)


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


@pytest.mark.parametrize("part", ["values", "status", "seeds", "provenance", "costs"])
def test_a_run_that_says_other_than_the_comparison_is_found(results: Path, part: str) -> None:
    def change(said: dict[str, Any]) -> None:
        info = said["near"]
        if part == "values":  # with its mean and its error, so that the file agrees with itself
            values = info["values"]["dead_share"]
            values[0] += 0.1
            info["means"]["dead_share"] = float(np.mean(values))
            info["stderrs"]["dead_share"] = float(np.std(values, ddof=1) / len(values) ** 0.5)
        else:
            info[part] = {"status": "degenerate", "seeds": [0, 1, 2, 9], "provenance": {}, "costs": {}}[part]

    file = results / "run_0" / "final_info.json"
    changed(file, change)
    assert any(f"near: {part} as in {file}" in line for line in audit_folder(results).differences)


def test_sums_of_a_run_that_differ_from_those_of_the_comparison_are_found(results: Path) -> None:
    def change(said: dict[str, Any]) -> None:
        (at,) = said["arms"]["near"]["position_share_lifted"]["0"].values()
        said["vectors"][at] = " ".join(str(2 * float(number)) for number in said["vectors"][at].split())

    changed(results / "run_0" / "by_text.json", change)
    assert any("near: sums over text as in" in line for line in audit_folder(results).differences)


def test_a_run_without_a_folder_is_named(results: Path) -> None:
    changed(results / "run_0" / "final_info.json", lambda said: said.pop("near"))
    found = audit_folder(results)
    (line,) = found.not_checked
    assert line.endswith("near: none of the folders next to it holds this run") and found.differences == []


@pytest.mark.parametrize(
    ("what", "becomes", "said"),
    [(r"\| near \| 64 .*\n", "", "Figures: runs"), (r"\| near \| 64", "| near | 65", "near: features"),
     (r"(?s)(every figure.*?)\| dead .*?\n", r"\1", "every figure: figures")],
)  # fmt: skip
def test_a_row_that_is_left_out_and_a_wrong_size_are_found(results: Path, what: str, becomes: str, said: str) -> None:
    file = results / "comparison.md"
    text = file.read_text()
    after = re.sub(what, becomes, text, count=1)
    assert after != text
    file.write_text(after)
    assert any(said in line for line in audit_folder(results).differences)


def test_comparisons_of_earlier_versions_are_checked_as_far_as_they_go(results: Path) -> None:
    def drop(said: dict[str, Any]) -> None:
        for one in said["arms"]:
            for difference in one["differences"].values():
                del difference["unequal_l0"]

    before = audit_folder(results).checked
    changed(results / "comparison.json", drop)
    found = audit_folder(results)
    assert found.differences == [] and found.not_checked == [] and 0.8 * before < found.checked < before
    changed(results / "comparison.json", lambda said: said["runs"].pop("old"))
    found = audit_folder(results)
    assert found.differences == [] and found.checked > 100
    assert found.not_checked == [
        f"{results / 'comparison.json'}: old: it has no values by seed",
        f"{results / 'comparison.json'}: Holm's p, fronts and tables: some runs have no values by seed; compare the runs again",
    ]


@pytest.mark.parametrize("name", ["comparison.json", "run_0/final_info.json", "by_text.json"])
@pytest.mark.parametrize("text", ["", '{"arms": ', "[]", "5"])
def test_a_damaged_file_is_a_difference_and_the_rest_is_checked(results: Path, name: str, text: str, run: Any) -> None:
    (results / name).write_text(text)
    found = audit_folder(results)
    (line,) = found.differences
    assert line.startswith(f"{results / name}: damaged: ") and found.not_checked == [] and found.checked > 0
    status, out, err = run("study", "audit", results)
    assert status == 2 and "1 differ, as said above" in err and line in out.replace("\n", " ")


@pytest.mark.parametrize("name", ["comparison.json", "run_0/final_info.json"])
@pytest.mark.parametrize(
    "text", ["{}", '{"arms": 3}', '{"arms": [], "runs": []}', '{"a": [1]}', '{"a": {"values": 3}}']
)
def test_a_file_of_another_form_is_not_checked_and_named(results: Path, name: str, text: str) -> None:
    (results / name).write_text(text)
    found = audit_folder(results)
    assert found.differences == [] and found.checked > 0
    if (name, text) != ("run_0/final_info.json", "{}"):
        (line,) = found.not_checked
        assert line.startswith(f"{results / name}: ") and line.endswith("compare the runs again")


def test_the_audit_imports_numpy_and_scipy_alone() -> None:
    tree = ast.parse(Path(audit.__file__).read_text(encoding="utf-8"))
    names = [
        name
        for node in ast.walk(tree)
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "scipy"}


def test_the_command_ends_with_an_error_on_a_difference(run: Any, results: Path) -> None:
    status, out, _ = run("study", "audit", results)
    assert status == 0 and "figures checked: all as computed again" in out
    file = results / "comparison.md"
    file.write_text(file.read_text().replace("0.6", "0.7"))
    status, out, err = run("study", "audit", results)
    assert status == 2 and "differ, as said above" in err and "worse | much" in out
    assert run("study", "audit", results / "none")[0] == 2
    (results / "empty").mkdir()
    assert "nothing to check" in run("study", "audit", results / "empty")[2]


@pytest.mark.parametrize("name", ["comparison.json", "by_text.json", "run_0/final_info.json"])
def test_the_command_finds_values_that_no_figure_shows_by_their_checksum(run: Any, results: Path, name: str) -> None:
    def change(said: dict[str, Any]) -> None:
        part = next(iter(said.values())) if name.startswith("run_0") else said
        part["remarks" if name.startswith("run_0") else "notes"] = ["it was warm"]

    changed(results / name, change)
    status, out, _ = run("study", "audit", results)
    assert status == 2 and "do not match its checksum" in out
