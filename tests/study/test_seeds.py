"""The same plan at several seeds: what a seed changes, and what is said of the scatter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scansion.masks import RandomHardMaskConfig
from scansion.study import StudyPlan, execute_seeds
from scansion.study.seeds import cells_of, rows_of, write_table


@pytest.fixture(scope="module")
def plan(settings: dict[str, Any]) -> StudyPlan:
    runs = [
        {"name": "plain", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}},
        {"name": "masked", "sae": {"architecture": "topk", "d_sae": 32, "k": 4, "mask": {"family": "random_hard"}}},
        {"name": "untrained", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}, "training": {"tokens": 0}},
    ]
    return StudyPlan.model_validate({**settings, "seeds": [0, 1, 5], "sparse_probing": None, "runs": runs})


@pytest.fixture(scope="module")
def carried(plan: StudyPlan, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("seeds")
    return folder, execute_seeds(plan, folder)


def test_a_seed_changes_weights_masks_and_data_and_nothing_else(plan: StudyPlan) -> None:
    one, other = plan.at_seed(1), plan.at_seed(5)
    assert (one.training.seed, one.training.data_seed, other.training.data_seed) == (1, 1, 5)
    assert isinstance(one.runs[1].sae.mask, RandomHardMaskConfig) and one.runs[1].sae.mask.seed == 1
    assert one.model_copy(update={"training": None, "runs": None, "seeds": None}) == other.model_copy(
        update={"training": None, "runs": None, "seeds": None}
    )


def test_figures_are_means_over_seeds_and_differences_are_paired(carried) -> None:
    _, runs = carried
    plain, masked, untrained = rows_of(runs)
    values = [[result.core.fve.value for result in run.results] for run in runs[:2]]
    assert len(set(values[0])) == 3, "seeds gave the same SAE"
    assert plain.figures["fve"].value == pytest.approx(sum(values[0]) / 3)
    gaps = [b - a for a, b in zip(*values, strict=True)]
    mean = sum(gaps) / 3
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2)
    found = masked.differences["fve"]
    assert found.value == pytest.approx(mean)
    # Student's t with 2 degrees of freedom: 97.5% lie below 4.30265.
    assert found.high - found.value == pytest.approx(4.30265 * deviation / math.sqrt(3), rel=1e-4)
    assert plain.differences == {} and plain.step_ms is not None and plain.step_ms.value > 0
    assert untrained.set_apart is not None and "no training step was taken" in untrained.set_apart
    assert untrained.figures == {} and untrained.differences == {}


def test_a_star_marks_a_difference_that_excludes_zero(carried) -> None:
    headings, body = cells_of(rows_of(carried[1]))
    column = headings.index("FVE - first run's")
    row = rows_of(carried[1])[1]
    assert body[1][column].endswith("*") == row.differences["fve"].excludes_zero
    assert "no training step was taken" in body[2][2]


def test_the_table_is_written_and_a_second_time_nothing_is_trained(plan, carried, capsys) -> None:
    folder, _ = carried
    before = {path: path.read_bytes() for path in Path(folder).rglob("*.safetensors")}
    again = execute_seeds(plan, folder)
    assert "already trained" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path(folder).rglob("*.safetensors")} == before
    table = write_table(plan, rows_of(again), folder)
    assert table.read_text().count("\n|") == 5
    written = json.loads((folder / "results.json").read_text())
    assert [row["run"] for row in written["rows"]] == ["plain", "masked", "untrained"]
    assert written["plan"]["seeds"] == [0, 1, 5]
