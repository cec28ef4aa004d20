"""A study runs from text to figures, does nothing twice, trusts no stale result, and prints no conclusion on nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scansion.errors import ConfigError, EvalError, ScansionError, TrainingError
from scansion.evals.core.evaluate import CoreConfig
from scansion.pipeline.evaluate import evaluate
from scansion.records import SEAL
from scansion.report import summarise
from scansion.study import StudyPlan, StudyRecord, execute, open_runs
from scansion.training import loop
from tests.study.conftest import Carried

RESULTS = (
    "evals/core.json",
    "evals/sparse_probing.json",
    "evals/sparse_probing.saebench.json",
    "evals/position.json",
    "evals/position_profile.safetensors",
)


def bytes_of(folders: dict[int, Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for f in folders.values() for path in f.rglob("*") if path.is_file()}


def never(*_: object, **__: object) -> Any:
    raise AssertionError("work was done again")


def changed(plan: StudyPlan, **changes: Any) -> StudyPlan:
    return StudyPlan.model_validate({**plan.model_dump(mode="json"), **changes})


def measuring(plan: StudyPlan, **settings: Any) -> StudyPlan:
    """The plan with these evaluations set otherwise."""
    return changed(plan, evaluations={**plan.model_dump(mode="json")["evaluations"], **settings})


def test_every_run_folder_explains_itself(carried: Carried) -> None:
    for folder in carried.folders.values():
        for name in ("config.yaml", "sae/cfg.json", "sae/sae_weights.safetensors", *RESULTS):
            assert (folder / "seed_0" / name).stat().st_size > 0, name
        for name in ("final_info.json", "plan.json"):
            assert (folder / name).stat().st_size > 0, name
    assert (carried.seed_folder(0) / "metrics.jsonl").exists()
    leftovers = [path for f in carried.folders.values() for path in f.rglob("*") if "partial" in path.name]
    assert leftovers == []


def test_final_info_holds_the_figures_of_the_evaluations(carried: Carried) -> None:
    for index, folder in carried.folders.items():
        ((name, info),) = json.loads((folder / "final_info.json").read_text()).items()
        assert name == carried.plan.runs[index].name
        assert info["means"] == carried.results[index].means()
        assert info["values"] == {figure: [value] for figure, value in info["means"].items()}
        assert info["seeds"] == [0] and info["provenance"]["hook_point"] == "resid_post.1"
        assert info["provenance"]["plan"] == carried.plan.digest
        assert info["stderrs"] == dict.fromkeys(info["means"]), "one seed has no standard error"
    means = json.loads((carried.folders[0] / "final_info.json").read_text())["plain"]["means"]
    core = json.loads((carried.seed_folder(0) / "evals/core.json").read_text())
    assert means["fve"] == core["fve"]["value"] > 0
    assert means["sae_top_1_test_accuracy"] is not None


def test_an_untrained_run_has_a_reason_and_no_figure(carried: Carried) -> None:
    info = json.loads((carried.folders[2] / "final_info.json").read_text())["untrained"]
    assert (info["status"], info["means"], info["values"]) == ("degenerate", {}, {})
    assert "no training step was taken" in info["reasons"]
    summary = summarise(list(carried.results.values()))
    assert [row[0] for row in summary.rows] == ["plain (short)", "masked (short)"]
    assert summary.set_apart[0][0] == "untrained" and "no training step" in summary.set_apart[0][1]


def test_a_second_run_does_nothing_again(carried: Carried, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("scansion.pipeline.stores.load_language_model", never)
    monkeypatch.setattr(loop, "_train_sessions", never)
    before = bytes_of(carried.folders)
    assert execute(carried.plan, carried.folders) == carried.records
    assert bytes_of(carried.folders) == before
    said = capsys.readouterr().err
    assert said.count("reusing") == 2 and said.count("already trained") == 3
    assert "core: 3 of 3 already evaluated" in said and "sparse_probing: 3 of 3 already evaluated" in said


def test_entries_run_alone_give_what_they_give_together(carried: Carried, tmp_path: Path) -> None:
    execute(carried.plan, {1: tmp_path / "run_1"})
    for name in (
        "sae/sae_weights.safetensors",
        "sae/cfg.json",
        "evals/core.json",
        "evals/position.json",
    ):
        assert (tmp_path / "run_1/seed_0" / name).read_bytes() == (carried.seed_folder(1) / name).read_bytes(), name
    assert open_runs([tmp_path / "run_1"])[0].info.values == carried.records[1].info.values


def test_results_are_measured_again_when_their_settings_change(carried: Carried, tmp_path: Path, capsys) -> None:
    folders = {0: tmp_path / "run_0"}
    execute(carried.plan, folders)
    file = folders[0] / "seed_0/evals/core.json"
    first = json.loads(file.read_text())
    capsys.readouterr()
    execute(measuring(carried.plan, core={"loss_contexts": 0}), folders)
    said = capsys.readouterr().err
    assert "core: 0 of" not in said and "core: 1 of 1" not in said
    assert "sparse_probing: 1 of 1 already evaluated" in said, "what did not change is kept"
    assert first["ce_loss"] is not None and json.loads(file.read_text())["ce_loss"] is None
    execute(carried.plan, folders)
    assert json.loads(file.read_text()) == first


@pytest.mark.parametrize("damage", ["an older format", "another SAE"])
def test_results_of_something_else_are_measured_again(carried: Carried, tmp_path: Path, damage: str) -> None:
    folders = {0: tmp_path / "run_0"}
    execute(carried.plan, folders)
    file = folders[0] / "seed_0/evals/core.json"
    good = json.loads(file.read_text())
    bad = {**good, "fve": {"value": 0.999, "low": 0.998, "high": 1.0}}
    del bad[SEAL]
    if damage == "an older format":
        del bad["sae_fingerprint"]
    else:
        bad["sae_fingerprint"] = "0" * 32
    file.write_text(json.dumps(bad))
    execute(carried.plan, folders)
    assert json.loads(file.read_text()) == good


@pytest.mark.parametrize("damage", ["broken", "edited"])
def test_a_damaged_result_is_named_and_measured_again(
    carried: Carried, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {0: tmp_path / "run_0"}
    execute(carried.plan, folders)
    file = folders[0] / "seed_0/evals/core.json"
    good = json.loads(file.read_text())
    file.write_text("{" if damage == "broken" else json.dumps({**good, "seed": 7}))
    (record,) = execute(carried.plan, folders)
    assert record.info.status == "ok"
    assert json.loads(file.read_text()) == good
    assert re.search(
        r"core\.json (is not valid JSON|was changed after it was written).*; evaluating again", capsys.readouterr().err
    )


def test_runs_of_different_token_counts_are_set_apart(carried: Carried, tmp_path: Path) -> None:
    longer = changed(carried.plan, training={**carried.plan.training.model_dump(mode="json"), "tokens": 3000})
    (record,) = execute(longer, {0: tmp_path / "run_0"})
    summary = summarise([carried.results[1], *record.evaluations().values()])
    assert [row[0] for row in summary.rows] == ["masked (short)"]
    ((name, why),) = summary.set_apart
    assert name == "plain" and why == "not comparable with masked: tokens is 3000, not 1500"


def test_runs_at_different_hook_points_are_set_apart_and_not_mixed(carried: Carried, tmp_path: Path) -> None:
    (record,) = execute(changed(carried.plan, hook_point="layers.2"), {0: tmp_path / "run_0"})
    summary = summarise([carried.results[1], *record.evaluations().values()])
    held_out = StudyRecord.open(tmp_path).held_out()
    assert [row[0] for row in summary.rows] == ["masked (short)"]
    assert "hook_point is 'resid_post.2', not 'resid_post.1'" in summary.set_apart[0][1]
    with pytest.raises(EvalError, match=r"plain was trained on .*resid_post\.1, but the store holds .*resid_post\.2"):
        evaluate({"plain": carried.seed_folder(0)}, {"core": CoreConfig()}, held_out, never)


def test_a_folder_of_another_run_is_refused(carried: Carried) -> None:
    with pytest.raises(TrainingError, match=r"holds another run \(.*name is 'plain' there and 'masked' here"):
        execute(carried.plan, {1: carried.folders[0]})


def test_mistakes_are_found_before_any_text_is_read(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.pipeline.stores.load_contexts", never)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the plan 'tiny' has no run 3; it has 0 to 2"):
        execute(carried.plan, {3: tmp_path / "run_3"})
    with pytest.raises(ScansionError, match="cannot write in"):
        execute(carried.plan, {0: tmp_path / "file" / "run_0"})
    with pytest.raises(ConfigError, match="no probing data set is called '1_wrods'; did you mean 1_words"):
        execute(measuring(carried.plan, sparse_probing={"datasets": ["1_wrods"]}), {0: tmp_path / "run_0"})
    with pytest.raises(ScansionError, match="has 3 layers"):
        execute(changed(carried.plan, hook_point="layers.9"), {0: tmp_path / "run_0"})


def test_a_model_that_changed_since_the_harvest_is_refused(carried: Carried, lm) -> None:
    with pytest.raises(EvalError, match="is now at test, but the store was made with xxh3:"):
        evaluate({"plain": carried.seed_folder(0)}, {"core": CoreConfig(loss_contexts=2)}, carried.held_out, lambda: lm)
