"""Studies on synthetic worlds: mistakes come first, seeds change every draw, and comparisons stay within a world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.evals.position.profiles import save_profiles
from scansion.evals.statistics import Estimate
from scansion.masks import RandomHardMaskConfig
from scansion.sae import load_sae
from scansion.study import ArmInfo, StudyPlan, StudyRecord, compare, execute, load_plan, trials
from scansion.study.checks import check_plan, plan_assets
from scansion.study.compare.comparison import by_world
from scansion.study.compare.figures import figure
from scansion.study.record import source_at

ARMS = {
    "plain": {"sae": {"architecture": "topk", "d_sae": 24, "k": 2}},
    "hard": {"sae": {"architecture": "topk", "d_sae": 24, "k": 2, "mask": {"family": "random_hard"}}},
}
PLAN: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0, 1],
    "world": {
        "d_in": 16, "n_features": 24, "context_length": 8, "n_contexts": 96, "n_held_out_contexts": 48, "mean_l0": 1.5,
        "band_width": [2, 8], "max_probability": 1.0, "mix": {"band": 1, "single": 0, "periodic": 0},
    },
    "training": {"tokens": 4000, "batch_tokens": 64, "lr": 0.003, "device": "cpu"},
    "primary_metric": "recovered",
    "runs": [
        {"name": "free", "world": {"bound": 0}, "arms": ARMS},
        {"name": "tied [1]", "world": {"bound": 1}, "arms": ARMS},
    ],
}  # fmt: skip


def plan_with(**changes: object) -> StudyPlan:
    return StudyPlan.model_validate({**PLAN, **changes})


def folders_in(home: Path) -> dict[int, Path]:
    return {run: home / f"run_{run}" for run in range(2)}


@pytest.fixture(autouse=True, scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stores go to a cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("study")
    execute(plan_with(), folders_in(home))
    return home


def infos_in(home: Path) -> dict[str, ArmInfo]:
    return {arm.name: arm.info for arm in StudyRecord.open(home).arms}


def values_in(home: Path) -> dict[str, dict[str, list[float | None]]]:
    return {name: info.values for name, info in infos_in(home).items()}


def arm_with(sae: Mapping[str, object], training: Mapping[str, object] | None = None) -> dict[str, object]:
    base = {"architecture": "topk", "d_sae": 8, "k": 2}
    return {"runs": [{"name": "plain", "sae": {**base, **sae}, "training": training or {}}]}


def world_of(**world: object) -> dict[str, object]:
    return {"runs": [{"name": "w", "world": world, "arms": ARMS}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: "),
        ({"seeds": [0, 0]}, "a seed is given twice: [0, 0]"),
        ({"primary_metric": "ce_loss"}, "primary_metric 'ce_loss' is not among what this plan measures"),
        ({"colour": "red"}, "colour: there is no such setting"),
        (
            {"world": {**PLAN["world"], "d_on": 3}},
            "world of run 'free': d_on: there is no such setting; did you mean d_in?",
        ),
        (world_of(bonud=1), "world of run 'w': bonud: there is no such setting; did you mean bound?"),
        (world_of(bound=2), "world of run 'w': bound: "),
        (world_of(seed=2), "world.seed is set by the study; list seeds in 'seeds'"),
        ({"runs": [PLAN["runs"][0], PLAN["runs"][0]]}, "two runs have the same name"),
        (world_of(bound=1, max_probability=0.15), "the most frequent feature would fire"),
        ({"training": {"tokens": -1}}, "training.tokens: "),
        ({"training": {"use_position_0": False}}, "training.use_position_0: position 0 of a world is like any other"),
        (arm_with({}, {"use_position_0": False}), "training.use_position_0: position 0 of a world is like any other"),
        (arm_with({}, {"lr": 0}), "lr: "),
        (arm_with({"mask": {"family": "moon"}}), "no mask family is called 'moon'; there are adaptive, bands"),
        (
            arm_with({"mask": {"family": "random_hard", "positions_per_feature": 9}}),
            "run 0 (plain): positions_per_feature is 9, but a context has only 8 positions",
        ),
        (arm_with({"mask": {"family": "random_hard", "seed": 3}}), "run 'plain': sae.mask.seed is set by the study"),
        ({"model": "gemma"}, "model is of a language model or its text, and a world has neither"),
        ({"corpus": {"source": "sotu"}}, "corpus is of a language model or its text"),
        ({"evaluations": {"tpp": None}}, "neither text nor a language model: leave out tpp"),
        ({"world": None}, "a plan needs a corpus, or a world of synthetic activations"),
        ({"world": None, "corpus": {}}, "free, tied [1]: a run can change the plan's world only if the plan has one"),
    ],
)
def test_every_mistake_in_a_plan_is_one_line(
    run, tmp_path: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **deepcopy(changes)}))
    monkeypatch.setattr("scansion.pipeline.planted.plant_store", None)
    status, _, err = run("study", "run", path, "--out", tmp_path / "out")
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.rglob("final_info.json"))


def test_synth_refuses_a_plan_on_text_and_one_that_is_not_there(run, tmp_path: Path) -> None:
    status, _, err = run("synth", "--plan", "demo", "--out", tmp_path)
    assert status == 2 and "has no world; `scansion study run` carries out the other plans" in err
    status, _, err = run("synth", "--plan", tmp_path / "none.yaml", "--out", tmp_path)
    assert status == 2 and "there is no plan at" in err
    status, _, err = run("synth", "--seeds", 1, "--seeds", 1, "--out", tmp_path)
    assert status == 2 and "a seed is given twice: [1, 1]" in err


def test_the_bundled_plan_is_sound(tmp_path: Path) -> None:
    plan = load_plan("synthetic")
    check_plan(plan, {run: tmp_path / f"run_{run}" for run in range(len(plan.runs))})
    arms = plan.arms()
    assert plan.seeds == (0, 1, 2, 3, 4) and len(arms) == 33 and plan_assets(plan) == []
    assert [run.world for run in plan.runs] == [{"bound": 0}, {"bound": 0.5}, {"bound": 1}]
    assert [arm.name for arm in arms[::11]] == [f"{world} bound: unmasked" for world in ("none", "half", "all")]
    assert all(arm.training.use_position_0 and arm.training.tokens == 1_000_000 for arm in arms)


def test_a_plan_says_nothing_of_the_source_it_does_not_have() -> None:
    plan = plan_with()
    dumped = plan.model_dump(mode="json")
    assert StudyPlan.model_validate(dumped) == plan
    assert not {"model", "hook_point", "corpus", "harvest"} & dumped.keys() and "world" in dumped["runs"][0]
    assert plan_with(world={**PLAN["world"], "noise": 0.3}).digest != plan.digest
    text = load_plan("demo").model_dump(mode="json")
    assert "world" not in text and not any("world" in run for run in text["runs"])


def test_a_seed_changes_world_weights_data_order_and_mask(finished: Path) -> None:
    plan = plan_with()
    masked = plan.arms()[1]
    assert masked.world_at(5).seed == 5
    sae, training = masked.at_seed(5)
    assert (training.seed, training.data_seed, training.use_position_0) == (5, 5, True)
    assert isinstance(sae.mask, RandomHardMaskConfig) and sae.mask.seed == 5
    zero, one = (source_at(plan, masked, seed).build() for seed in (0, 1))
    for ours, theirs in ((zero.train, one.train), (zero.held_out, one.held_out)):
        assert ours.manifest.key != theirs.manifest.key
        assert not torch.equal(ours.contexts(0, 8).x, theirs.contexts(0, 8).x)
    first, second = (load_sae(finished / f"run_0/hard/seed_{seed}/sae") for seed in (0, 1))
    assert not torch.equal(first[0].state_dict()["mask.open"], second[0].state_dict()["mask.open"])
    assert not torch.equal(first[0].W_dec, second[0].W_dec)
    assert (first[1].contexts, second[1].contexts) == (zero.train.identity.contexts, one.train.identity.contexts)


def test_figures_are_those_of_each_seeds_own_world(finished: Path) -> None:
    for record in StudyRecord.open(finished).arms:
        for seed, results in record.evaluations().items():
            held_out = source_at(plan_with(), record.arm, seed).build().held_out
            assert results.core.data["store"] == results.results["synthetic"].data["store"] == held_out.manifest.key
            assert 0 in results.core.positions and results.core.ce_loss is None


def test_what_is_finished_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, notes = values_in(finished), (finished / "notes.txt").read_text()
    started: list[str] = []
    monkeypatch.setattr("scansion.training.loop.Session.start", lambda session, *_: started.append(session.run.name))
    monkeypatch.setattr("scansion.evals.core.evaluation.evaluate_core", None)
    monkeypatch.setattr("scansion.evals.recovery.evaluation.evaluate_recovery", None)
    monkeypatch.setattr("scansion.synth.store._shard", None)
    execute(plan_with(), folders_in(finished))
    assert values_in(finished) == before and (finished / "notes.txt").read_text() == notes
    assert started == []


def test_a_new_arm_is_all_that_is_trained(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    home = tmp_path / "study"
    shutil.copytree(finished, home)
    trained: list[str] = []
    train = trials.train

    def watched(runs, store: ActivationStore) -> None:
        trained.extend(run.name for run in runs if not (run.folder / "sae").exists())
        train(runs, store)

    monkeypatch.setattr(trials, "train", watched)
    arms = {**ARMS, "relu": {"sae": {"architecture": "relu", "d_sae": 24}}}
    execute(plan_with(runs=[{**run, "arms": arms} for run in PLAN["runs"]], seeds=[0]), folders_in(home))
    assert trained == ["free: relu", "tied [1]: relu"]


def test_interrupted_or_not_the_figures_are_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scansion.training.learner import Learner

    plain, calls = Learner.advance, 0

    def advance(self, batch):
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
        patch.setattr(Learner, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            execute(plan_with(), folders_in(tmp_path))
        execute(plan_with(), folders_in(tmp_path))
    assert values_in(tmp_path) == values_in(finished)


def test_one_run_by_itself_gives_the_same_figures(finished: Path, tmp_path: Path) -> None:
    execute(plan_with(), {1: tmp_path / "run_1"})
    everything = values_in(finished)
    assert values_in(tmp_path) == {name: everything[name] for name in ("tied [1]: plain", "tied [1]: hard")}
    assert "this is the baseline" in (tmp_path / "notes.txt").read_text()


def test_means_and_differences_are_over_seeds_in_pairs_within_a_world(finished: Path) -> None:
    worlds = by_world(infos_in(finished))
    assert list(worlds) == ["bound 0.0", "bound 1.0"]
    free, tied = (compare(infos) for infos in worlds.values())
    assert (free.baseline, tied.baseline) == ("free: plain", "tied [1]: plain")
    assert free.set_apart == tied.set_apart == {}
    plain, hard = tied.arms
    seeds = [StudyRecord.open(finished).arms[index].evaluations() for index in (2, 3)]
    fve = [[results[seed].core.fve.value for seed in (0, 1)] for results in seeds]
    assert plain.differences == {} and fve[0][0] != fve[0][1]
    assert plain.figures["fve"] == Estimate.of_seeds(fve[0])
    assert hard.differences["fve"].estimate == Estimate.of_seeds([a - b for a, b in zip(fve[1], fve[0], strict=True)])
    assert hard.differences["fve"].seeds == [0, 1]
    recovery = [results[0].results["synthetic"].recovery for results in seeds]
    assert worlds["bound 1.0"]["tied [1]: hard"].values["mask_overlap"][0] == recovery[1].groups["bound"].mask.overlap
    assert hard.figures["recovered"].low is not None and hard.figures["mmcs"].low < hard.figures["mmcs"].high
    # What a world lacks has no figure; what it has comes with its chance level.
    assert "recovered_bound" in plain.figures and "recovered_bound" not in free.arms[0].figures
    assert "recovered_unbound" in free.arms[0].figures and "recovered_unbound" not in plain.figures
    assert hard.figures["mask_overlap"].value != hard.figures["mask_overlap_chance"].value
    assert plain.figures["mask_overlap"].value == pytest.approx(plain.figures["mask_overlap_chance"].value)
    assert hard.figures["mask_iou"].value != hard.figures["mask_iou_chance"].value
    shown = [name for name in plain.figures if figure(name).headline]
    assert {"mmcs", "mmcs_chance", "recovered_bound", "profile_overlap", "profile_overlap_chance"} <= set(shown)


def test_worlds_are_not_compared_with_one_another(finished: Path) -> None:
    together = compare(infos_in(finished))
    assert set(together.set_apart) == {"tied [1]: plain", "tied [1]: hard"}
    assert "not comparable with free: plain" in together.set_apart["tied [1]: hard"]


def test_runs_with_seeds_of_their_own_are_compared_on_those_they_share(tmp_path: Path) -> None:
    runs = [
        {"name": "plain", **ARMS["plain"], "seeds": [0, 1]},
        {"name": "hard", **ARMS["hard"], "seeds": [1, 2]},
    ]
    execute(plan_with(runs=runs), folders_in(tmp_path))
    found = compare(infos_in(tmp_path))
    assert found.set_apart == {} and found.arms[1].differences["fve"].seeds == [1]


def test_a_degenerate_dictionary_is_set_apart_and_named(tmp_path: Path) -> None:
    arms = {**ARMS, "untrained": {**ARMS["plain"], "training": {"tokens": 0}}}
    execute(plan_with(runs=[{"name": "free", "arms": arms}], seeds=[0]), {0: tmp_path / "run_0"})
    infos = infos_in(tmp_path)
    assert infos["free: untrained"].status == "degenerate" and infos["free: untrained"].values == {}
    apart = compare(infos).set_apart
    assert list(apart) == ["free: untrained"] and "no training step was taken" in apart["free: untrained"]
    assert "free: untrained: degenerate" in (tmp_path / "notes.txt").read_text()


def test_the_command_prints_and_writes_a_comparison_and_a_page_for_each_world(
    run, finished: Path, tmp_path: Path, all_figures: None
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    status, out, err = run("synth", "--plan", path, "--out", finished)
    assert status == 0, err
    assert "world: bound 0.0" in out and "Differences from tied [1]: plain" in out and "95% intervals" in out
    infos = infos_in(finished)
    for world, names in (("bound-0.0", ("free: plain", "free: hard")), ("bound-1.0", ("tied [1]: plain",))):
        written = json.loads((finished / world / "comparison.json").read_text())
        assert [arm["name"] for arm in written["arms"]][: len(names)] == list(names) and len(written["arms"]) == 2
        assert written["runs"][names[0]] == infos[names[0]].model_dump(mode="json")
        page = (finished / "report" / world / "index.html").read_text()
        assert f"tiny: {world.replace('-', ' ')}" in page and "MMCS" in page
    fve = infos["tied [1]: hard"].means["fve"]
    assert f"| tied [1]: hard (short) | 24 | {fve:.3f} [" in (finished / "bound-1.0/comparison.md").read_text()
    status, out, err = run("compare", finished / "run_0", finished / "run_1", "--baseline", "tied [1]: hard")
    assert status == 0, err
    assert "Differences from free: plain" in out and "Differences from tied [1]: hard" in " ".join(out.split())
    status, _, err = run("compare", finished / "run_0", "--baseline", "nobody")
    assert status == 2 and "there is no run called 'nobody'" in err


def test_seeds_of_the_command_replace_the_plans(run, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    status, out, err = run("synth", "--plan", path, "--out", tmp_path / "out", "--seeds", 7, "--no-report")
    assert status == 0, err
    assert "One seed" in out and all(info.seeds == [7] for info in infos_in(tmp_path / "out").values())
    assert not (tmp_path / "out/report").exists()


def test_held_out_activations_are_made_again_if_they_are_gone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = StudyRecord.open(finished).by_world()[1]
    before = tied.held_out()
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path))
    again = tied.held_out()
    assert tmp_path in again.folder.parents and again.manifest.key == before.manifest.key


def test_there_is_no_language_model_to_load() -> None:
    plan = plan_with()
    with pytest.raises(ConfigError, match="have no language model"):
        _ = source_at(plan, plan.arms()[0], 0).lm


def test_a_world_like_a_trained_sae_has_its_share_of_bound_features(run, tmp_path: Path) -> None:
    counts = np.zeros((16, 4))
    counts[:, :3] = 100
    counts[4:8, 3] = 400
    profiles = {
        "counts.in_force": counts, "tokens": np.full(16, 1000), "in_force.q_value": np.array([1.0, 1, 1, 0]),
        "in_force.effective_positions": np.array([16.0, 16, 16, 4]),
    }  # fmt: skip
    (tmp_path / "sae" / "evals").mkdir(parents=True)
    save_profiles(profiles, tmp_path / "sae" / "evals", "0")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        yaml.safe_dump({**PLAN, "training": {**PLAN["training"], "tokens": 128}, "seeds": [0]}, sort_keys=False)
    )
    given = ("synth", "--plan", plan, "--out", tmp_path / "out", "--no-report")
    status, _, err = run(*given, "--like", tmp_path / "sae")
    assert status == 0 and "'bound': 0.25" in err, err
    written = StudyRecord.open(tmp_path / "out").plan
    assert written.name == f"{PLAN['name']}_like", "it is not the study that the plan describes"
    [only] = written.runs
    assert only.world is not None and only.name == "as measured" and list(only.arms) == list(ARMS)
    assert (only.world["bound"], only.world["band_width"]) == (0.25, [2, 2])
    status, _, err = run(*given, "--like", tmp_path)
    assert status == 2 and "has no measured profiles; run `scansion eval" in err
