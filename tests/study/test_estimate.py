"""What a plan would take is said before anything is done, and what is done already is not counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scansion.errors import ScansionError
from scansion.pipeline.stores import harvest_plans
from scansion.study import StudyPlan, execute
from scansion.study.estimate import estimate
from scansion.study.record import source_of
from tests.study.conftest import Carried


def never(*_: object, **__: object) -> Any:
    raise AssertionError("heavy work was done")


def test_a_plan_is_estimated_without_being_begun(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another hook point: its store is not there.
    plan = StudyPlan.model_validate({**carried.plan.model_dump(mode="json"), "hook_point": "layers.0"})
    monkeypatch.setattr("scansion.pipeline.stores.harvest_together", never)
    found = estimate(plan, {0: tmp_path / "run_0", 2: tmp_path / "run_2"})
    assert found.harvested == (False, False) and found.harvest_seconds > 0
    assert [(one.arm.name, one.missing) for one in found.arms] == [("plain", 1), ("untrained", 1)]
    assert found.arms[0].train_seconds > 0 and found.arms[1].train_seconds == 0
    stores = sum(one.n_bytes for one in harvest_plans(source_of(plan)))
    # A TopK SAE of 32 features: two matrices and two biases; seven copies of 4 bytes.
    d_in = found.train.identity.d_in
    assert found.n_bytes - stores >= 7 * 4 * (2 * 32 * d_in + 32 + d_in)
    assert "in all" in found.lines()[-2] and not list(tmp_path.rglob("sae"))


def test_every_architecture_is_estimated(carried: Carried, tmp_path: Path) -> None:
    plan = carried.plan.with_runs([{"name": "pairs", "sae": {"architecture": "tsae", "d_sae": 30, "k": 4}}])
    (one,) = estimate(plan, {3: tmp_path / "run_3"}).arms
    assert one.train_seconds > 0 and one.steps == 20 and one.warning is not None


def test_what_is_finished_is_not_counted(carried: Carried) -> None:
    found = estimate(carried.plan, carried.folders)
    assert found.harvested == (True, True) and found.harvest_seconds == 0
    assert [one.missing for one in found.arms] == [0, 0, 0] and found.n_bytes == 0
    assert all("there already" in line for line in found.lines()[:2])


def test_mistakes_are_found_first(carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scansion.pipeline.stores.load_contexts", never)
    plan = carried.plan.with_runs(
        [
            {
                "name": "wide",
                "sae": {"d_sae": 32, "k": 4, "architecture": "topk", "mask": {"family": "bands", "count": 5}},
            }
        ]
    )
    with pytest.raises(ScansionError, match=r"run 3 \(wide\): .*32 bound features do not divide evenly among 5 bands"):
        estimate(plan, {3: tmp_path / "run_3"})


def test_a_plan_on_the_fly_is_estimated_and_carried_out(settings: dict[str, Any], tmp_path: Path) -> None:
    on_the_fly = {"on_the_fly": True, "buffer_tokens": 1280, "lm_batch_size": 4}
    both = {
        **settings,
        "harvest": on_the_fly,
        "evaluations": {"core": {}},
        "seeds": [0, 1],
        "runs": settings["runs"][:2],
    }
    plan, folders = StudyPlan.model_validate(both), {index: tmp_path / f"run_{index}" for index in range(2)}
    # Chunks of 20 contexts: four in the buffer, and the first one.
    train, held_out = harvest_plans(source_of(plan))
    found = estimate(plan, folders)
    assert "made while training, once for every seed" in found.lines()[0] and "made" not in found.lines()[1]
    assert train.n_bytes < train.identity.n_contexts * 16 * 2 * found.train.identity.d_in * 2
    records = execute(plan, folders)
    assert [record.info.status for record in records] == ["ok", "ok"]
    left = {path.name for path in train.folder.iterdir()}
    assert left - {".lock"} == {"on_the_fly.json", "contexts.safetensors"}  # and no activations
    assert held_out.finished_store() is not None and found.harvest_seconds > 0
