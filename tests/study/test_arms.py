"""A run may hold several arms at several seeds; what fails is recorded, and nothing else suffers from it."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from scansion.errors import ConfigError, ScansionError, TrainingError
from scansion.study import ArmRecord, StudyPlan, StudyRecord, execute, infos_of, open_runs, trials
from scansion.study.checks import check_plan
from scansion.study.final_info import _reasons, summarise_seeds
from scansion.training import loop

TOPK = {"architecture": "topk", "d_sae": 32, "k": 4}
HARD = {"family": "random_hard", "positions_per_feature": 4}


@pytest.fixture(scope="module")
def plan(settings: dict[str, Any]) -> StudyPlan:
    return StudyPlan.model_validate(
        {
            **settings,
            "sparse_probing": None,
            "position": None,
            "evaluations": {"core": {"loss_contexts": 0}},
            "seeds": [0, 1, 5],
            "runs": [
                {"name": "plain", "sae": TOPK, "seeds": [0, 1, 5, 7]},
                {
                    "name": "masks",
                    "changes": "the mask",
                    "arms": {
                        "hard": {"sae": {**TOPK, "mask": HARD}},
                        "P = 0": {"sae": {**TOPK, "mask": {**HARD, "acts_on": "placebo"}}},
                    },
                },
            ],
        }
    )  # fmt: skip


def folders_in(home: Path, plan: StudyPlan) -> dict[int, Path]:
    return {index: home / f"run_{index}" for index in range(len(plan.runs))}


@pytest.fixture(scope="module")
def done(plan: StudyPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ArmRecord]]:
    home = tmp_path_factory.mktemp("arms")
    return home, execute(plan, folders_in(home, plan))


def test_arms_have_names_folders_and_seeds(plan: StudyPlan, done) -> None:
    home, records = done
    assert [record.name for record in records] == ["plain", "masks: hard", "masks: P = 0"]
    assert [record.info.seeds for record in records] == [[0, 1, 5, 7], [0, 1, 5], [0, 1, 5]]
    assert {record.info.status for record in records} == {"ok"}
    assert (home / "run_1/p-0/seed_5/sae/cfg.json").exists() and (home / "run_0/seed_7/sae/cfg.json").exists()
    assert list(json.loads((home / "run_1/final_info.json").read_text())) == ["masks: hard", "masks: P = 0"]
    assert StudyRecord.open(home).arms == records == open_runs([home / "run_0", home / "run_1"])


def test_a_seed_changes_weights_masks_and_data_and_nothing_else(plan: StudyPlan) -> None:
    hard = plan.arms()[1]
    (sae, training), (other, other_training) = hard.at_seed(1), hard.at_seed(5)
    assert (training.seed, training.data_seed, sae.mask.seed) == (1, 1, 1)
    assert (other_training.seed, other_training.data_seed, other.mask.seed) == (5, 5, 5)
    assert sae.model_copy(update={"mask": None}) == other.model_copy(update={"mask": None})
    assert training.model_copy(update={"seed": 5, "data_seed": 5}) == other_training


def test_figures_are_over_seeds_and_errors_are_std_over_root_n(done) -> None:
    info = done[1][0].info
    values = info.values["fve"]
    assert len(values) == len(set(values)) == 4, "each seed is an SAE of its own"
    assert info.means["fve"] == pytest.approx(statistics.fmean(v for v in values if v is not None))
    assert info.stderrs["fve"] == pytest.approx(statistics.stdev(values) / math.sqrt(4))
    folder = done[1][0].seed_folders[7]
    assert json.loads((folder / "evals/core.json").read_text())["fve"]["value"] == values[3]
    assert info.costs["train_seconds"] > 0 and info.costs["step_ms"] > 0


def test_a_placebo_is_the_baseline_to_the_last_bit(done) -> None:
    plain, _, placebo = (record.info for record in done[1])
    assert placebo.values["fve"] == plain.values["fve"][:3]


def test_a_failing_arm_is_recorded_and_the_others_are_what_they_would_have_been(
    plan: StudyPlan, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = loop.Session.advance

    def burst(self: Any, batch: Any) -> None:
        if self.run.name == "masks: hard" and self.run.training.seed == 1 and self.learner.step == 2:
            raise MemoryError("too\nlarge")
        advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Session, "advance", burst)
        records = execute(plan, folders_in(tmp_path, plan))
    plain, hard, placebo = (record.info for record in records)
    assert (hard.status, hard.seeds) == ("failed", [0, 5])
    assert hard.reasons == ["seed 1 training failed: MemoryError: too large"]
    assert plain.values == done[1][0].info.values and placebo.values == done[1][2].info.values
    assert "no conclusion: failed: seed 1 training failed" in (tmp_path / "notes.txt").read_text()

    assert execute(plan, folders_in(tmp_path, plan))[1].info.status == "failed", "it is tried again only on request"
    (_, again, _) = execute(plan, folders_in(tmp_path, plan), retry=True)
    assert again.info.status == "ok" and again.info.values == done[1][1].info.values
    notes = (tmp_path / "notes.txt").read_text()
    assert notes.count("run_1 [") == 2 and notes.count("run_0 [") == 1, "an entry is added, and none is taken away"


def test_what_is_out_of_time_is_recorded(plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1_000_000, 2000))  # seconds: every look is 2000 later than the last
    monkeypatch.setattr(trials, "time", lambda: next(clock))
    limited = plan.model_copy(update={"max_hours": 1.0})
    records = execute(limited, folders_in(tmp_path, limited))
    assert all(record.info.status == "failed" for record in records)
    assert records[0].info.reasons[0].endswith("5, 7 out of time: the plan's 1 hours were over")
    assert records[0].info.seeds[:1] == [0], "what was begun in time is finished"


def test_a_changed_plan_is_registered_beside_the_earlier_one(plan: StudyPlan, tmp_path: Path) -> None:
    only = {0: tmp_path / "run_0"}
    execute(plan, only)
    other = plan.model_copy(update={"minimum_effect": 0.5})
    (record,) = execute(other, only)
    provenance = record.info.provenance
    assert provenance["plan"] == other.digest != plan.digest and provenance["plans_before"] == [plan.digest]


def test_a_folder_of_other_settings_is_refused_before_anything_is_read_or_registered(
    plan: StudyPlan, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {0: tmp_path / "run_0"}
    shutil.copytree(done[0] / "run_0", only[0])
    before = (only[0] / "plan.json").read_bytes()
    other = plan.model_copy(update={"training": plan.training.model_copy(update={"lr": 0.5})})
    with monkeypatch.context() as patch:
        patch.setattr("scansion.pipeline.stores.load_contexts", lambda *_: pytest.fail("text was read"))
        with pytest.raises(
            TrainingError, match=r"run_0/seed_0 holds another run \(training\.lr is 0\.001 there and 0\.5"
        ):
            execute(other, only)
    assert (only[0] / "plan.json").read_bytes() == before


def killed_at(patch: pytest.MonkeyPatch, seed: int, step: int) -> None:
    """Interrupt training there."""
    advance = loop.Session.advance

    def stop(self: Any, batch: Any) -> None:
        if (self.run.training.seed, self.learner.step) == (seed, step):
            raise KeyboardInterrupt
        advance(self, batch)

    patch.setattr(loop.Session, "advance", stop)


def test_what_is_interrupted_stays_in_the_tables(
    plan: StudyPlan, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, seed=0, step=3)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, folders_in(tmp_path, plan))
    records = StudyRecord.open(tmp_path).arms
    assert [(one.info.status, one.info.reasons) for one in records[1:]] == [
        ("unfinished", ["not finished: seed 0, 1, 5"])
    ] * 2
    (tmp_path / "run_1/final_info.json").unlink()
    assert {one.status for one in infos_of(tmp_path / "run_1").values()} == {"unfinished"}
    (tmp_path / "run_0/final_info.json").write_text("{")  # as a full disk might have left it
    again = execute(plan, folders_in(tmp_path, plan))
    assert [one.info.values for one in again] == [one.info.values for one in done[1]]


def test_finished_seeds_are_not_forgotten_when_a_longer_study_is_interrupted(
    plan: StudyPlan, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {0: tmp_path / "run_0"}
    shutil.copytree(done[0] / "run_0", only[0])
    first = plan.runs[0].model_copy(update={"seeds": (0, 1, 5, 7, 9)})
    longer = plan.model_copy(update={"runs": [first, *plan.runs[1:]]})
    train = trials._train
    monkeypatch.setattr(trials, "_train", lambda here, stores: [train(here, stores), 1 / (here[0].seed - 1)])
    with pytest.raises(ZeroDivisionError):
        execute(longer, only)
    assert StudyRecord.open(tmp_path).arms[0].info.seeds == [0, 1, 5, 7], "seed 0 is done again, and no other yet"


def test_weights_that_are_gone_are_made_again_and_damaged_ones_named(plan: StudyPlan, done, tmp_path: Path) -> None:
    only = {0: tmp_path / "run_0"}
    shutil.copytree(done[0] / "run_0", only[0])
    weights = only[0] / "seed_0/sae/sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    (record,) = execute(plan, only)
    assert record.info.values == done[1][0].info.values and weights.read_bytes() == whole
    weights.write_bytes(whole[: len(whole) // 2])
    (record,) = execute(plan, only)
    assert record.info.status == "failed" and "sae_weights.safetensors is missing or damaged" in record.info.reasons[0]


def test_one_reason_is_said_once_whatever_the_number_of_seeds() -> None:
    info = summarise_seeds({}, {}, {0: "was late", 1: "broke", 2: "was late"}, [0, 1, 2], {})
    assert (info.status, info.reasons) == ("failed", ["seed 0, 2 was late", "seed 1 broke"])


def test_a_mask_too_short_for_the_probing_texts_is_found_beforehand(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, masked, _ = settings["runs"]
    longer = {"sparse_probing": {**settings["evaluations"]["sparse_probing"], "context_length": 17}}
    plan = StudyPlan.model_validate({**settings, "runs": [plain, masked], "evaluations": longer})
    check_plan(plan, {0: tmp_path / "run_0"})
    with pytest.raises(ConfigError, match=r"run 1 \(masked\): position 16 is outside this mask of 16 positions"):
        check_plan(plan, {1: tmp_path / "run_1"})


def test_room_for_what_is_trained_is_looked_for(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("scansion.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ScansionError, match=r"what is trained needs .* where 1\.0 kB are free"):
        check_plan(plan, folders_in(tmp_path, plan))


def test_only_some_degenerate_seeds_are_named() -> None:
    assert _reasons({0: ["dead", "constant"], 1: ["dead"], 2: ["dead"]}) == ["dead", "seed 0: constant"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"name": "x"}, "needs either `sae` or `arms`"),
        ({"name": "x", "sae": TOPK, "arms": {"a": {"sae": TOPK}}}, "needs either `sae` or `arms`"),
        ({"name": "x", "arms": {"A b": {"sae": TOPK}, "a-b": {"sae": TOPK}}}, "two arms of 'x' would share a folder"),
        ({"name": "plain", "sae": TOPK}, "two runs have the same name"),
        ({"name": "x", "sae": TOPK, "seeds": [1, 1]}, "a seed is given twice"),
        ({"name": "x", "sae": {**TOPK, "mask": {"family": "odd"}}}, "no mask family is called 'odd'"),
    ],
)
def test_a_new_run_that_does_not_fit_is_refused(plan: StudyPlan, run: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.with_runs([run])


def test_a_new_run_comes_after_the_others(plan: StudyPlan) -> None:
    assert plan.with_runs([]) is plan
    longer = plan.with_runs([{"name": "wide", "sae": {**TOPK, "d_sae": 64}}])
    assert [arm.name for arm in longer.arms()][-1] == "wide" and longer.arms()[:-1] == plan.arms()
