"""The synthetic study: mistakes are found first, work is never done twice, and differences are paired by seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scansion import cli
from scansion.errors import ConfigError, ScansionError
from scansion.evals.statistics import Estimate
from scansion.masks import RandomHardMaskConfig
from scansion.study.compare.comparison import STAR_NOTE
from scansion.study.synthetic import (
    SyntheticPlan,
    compare,
    execute_synthetic,
    load_synthetic_plan,
    notes,
    tables,
    write_summary,
)
from scansion.study.synthetic.comparison import METRICS
from scansion.training import TrainingRun

PLAN = {
    "name": "tiny",
    "seeds": [0, 1],
    "world": {
        "d_in": 16, "n_features": 24, "context_length": 8, "n_contexts": 96, "n_held_out_contexts": 48, "mean_l0": 1.5,
        "band_width": [2, 8], "max_probability": 1.0, "mix": {"band": 1, "single": 0, "periodic": 0},
    },
    "worlds": [{"name": "free", "world": {"bound": 0}}, {"name": "bound [1]", "world": {"bound": 1}}],
    "training": {"tokens": 4000, "batch_tokens": 64, "lr": 0.003, "device": "cpu"},
    "reference": "plain",
    "variants": [
        {"name": "plain", "sae": {"architecture": "topk", "d_sae": 24, "k": 2}},
        {"name": "hard", "sae": {"architecture": "topk", "d_sae": 24, "k": 2, "mask": {"family": "random_hard"}}},
    ],
}  # fmt: skip


def plan_with(**changes: object) -> SyntheticPlan:
    plan = SyntheticPlan.model_validate({**PLAN, **changes})
    plan.check()
    return plan


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    execute_synthetic(plan_with(), out, jobs=1)
    return out


def figures_of(plan: SyntheticPlan, out: Path, jobs: int = 1) -> dict[str, object]:
    return compare(plan, execute_synthetic(plan, out, jobs)).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: "),
        ({"seeds": [0, 0]}, "seeds: 0 given twice"),
        ({"reference": "none"}, "reference: there is no variant 'none'"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"worlds": [{"name": "w", "world": {"bonud": 1}}]}, "world 'w': bonud: Extra inputs"),
        ({"worlds": [{"name": "w", "world": {"bound": 2}}]}, "world 'w': bound: "),
        ({"worlds": [{"name": "w", "world": {"seed": 2}}]}, "world 'w': world.seed is set by the study"),
        ({"worlds": [{"name": "w"}, {"name": "w"}]}, "worlds: w given twice"),
        (
            {"worlds": [{"name": "w", "world": {"bound": 1, "max_probability": 0.15}}]},
            "world 'w': the most frequent feature",
        ),
        ({"training": {"tokens": -1}}, "variant 'plain': tokens: "),
        ({"training": {"use_position_0": False}}, "training.use_position_0 is set by the study"),
        ({"variants": [{**PLAN["variants"][0], "training": {"lr": 0}}]}, "variant 'plain': lr: "),
        (
            {"variants": [{"name": "plain", "sae": {"architecture": "topk", "d_sae": 8, "mask": {"family": "moon"}}}]},
            "no mask family is called 'moon'; there are adaptive, bands",
        ),
        (
            {
                "variants": [
                    {
                        "name": "plain",
                        "sae": {
                            "architecture": "topk",
                            "d_sae": 8,
                            "mask": {"family": "random_hard", "positions_per_feature": 9},
                        },
                    }
                ]
            },
            "variant 'plain' in world 'free': positions_per_feature is 9, but a context has only 8 positions",
        ),
        (
            {
                "variants": [
                    {
                        "name": "plain",
                        "sae": {"architecture": "topk", "d_sae": 8, "mask": {"family": "random_hard", "seed": 3}},
                    }
                ]
            },
            "sae.mask.seed is set by the study",
        ),
    ],
)
def test_every_mistake_in_a_plan_is_one_line(
    tmp_path: Path, as_users_run_it, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    with pytest.raises(ConfigError) as caught:
        load_synthetic_plan(path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_plan_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no plan at"):
        load_synthetic_plan(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_synthetic_plan(tmp_path / "bad.yaml")


def test_the_committed_plan_is_sound() -> None:
    plan = load_synthetic_plan("synthetic")
    assert len(plan.seeds) == 5 and plan.reference == "unmasked"
    assert load_synthetic_plan("synthetic", [7]).seeds == (7,)


def test_a_seed_changes_world_weights_data_order_and_mask() -> None:
    plan = plan_with()
    masked = plan.variants[1]
    assert plan.world_config(plan.worlds[0], 5).seed == 5
    training = plan.training_config(masked, 5)
    assert (training.seed, training.data_seed, training.use_position_0) == (5, 5, True)
    mask = plan.sae_config(masked, 5).mask
    assert isinstance(mask, RandomHardMaskConfig) and mask.seed == 5


def test_what_is_finished_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = figures_of(plan_with(), finished)
    started: list[str] = []
    monkeypatch.setattr("scansion.training.loop._Session.start", lambda session, *_: started.append(session.run.name))
    monkeypatch.setattr("scansion.study.synthetic.execute.evaluate_core", None)
    monkeypatch.setattr("scansion.study.synthetic.execute.evaluate_recovery", None)
    assert figures_of(plan_with(), finished) == before
    assert started == []


def test_a_new_variant_is_all_that_is_trained(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scansion.training import train

    trained: list[str] = []

    def watched(runs: list[TrainingRun], store) -> None:
        trained.extend(run.name for run in runs if not (run.folder / "sae").exists())
        train(runs, store)

    monkeypatch.setattr("scansion.study.synthetic.execute.train", watched)
    relu = {"name": "relu", "sae": {"architecture": "relu", "d_sae": 24}}
    found = figures_of(plan_with(variants=[*PLAN["variants"], relu], seeds=[0]), finished)
    assert trained == ["relu", "relu"]
    assert [variant["name"] for variant in found["worlds"][0]["variants"]] == ["plain", "hard", "relu"]


def test_interrupted_or_in_parallel_the_figures_are_the_same(
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
        patch.setattr(Learner, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            execute_synthetic(plan_with(), tmp_path, jobs=1)
    assert figures_of(plan_with(), tmp_path, jobs=2) == figures_of(plan_with(), finished)
    logs = list((tmp_path / "runs").glob("*/log.txt"))
    assert len(logs) == 4


def test_a_star_means_the_same_as_in_every_comparison(finished: Path) -> None:
    """An interval without zero earns no star by itself: the p-value must survive Holm's correction over the variants."""
    seeds = [0, 1, 2, 3]
    gaps = {"weak": [0.01, 0.02, 0.03, 0.01], "strong": [0.10, 0.101, 0.102, 0.101]}
    noise = {f"noise {i}": [0.1 * i, -0.2, 0.1, -0.1] for i in range(4)}
    plan = plan_with(seeds=[0])
    summary = compare(plan, execute_synthetic(plan, finished, jobs=1))
    plain = summary.worlds[0].variants[0]

    def variant(name: str, by: list[float]):
        values = [0.5 + gap for gap in by]
        changes = {"fve": Estimate.of_seeds(by)} if name != "plain" else {}
        return plain.model_copy(
            update={
                "name": name,
                "by_seed": {metric: [None] * 4 for metric in plain.by_seed} | {"fve": values},
                "estimates": {metric: Estimate.of_seeds([]) for metric in plain.estimates}
                | {"fve": Estimate.of_seeds(values)},
                "differences": changes,
            }
        )

    variants = [variant(name, by) for name, by in ({"plain": [0.0] * 4} | gaps | noise).items()]
    world = summary.worlds[0].model_copy(update={"variants": variants})
    summary = summary.model_copy(update={"seeds": seeds, "worlds": [world]})
    assert variants[1].differences["fve"].excludes_zero
    figures, differences = tables(summary)
    starred = dict(zip(differences.columns[0].cells, differences.columns[1].cells, strict=True))
    assert [name for name, cell in starred.items() if str(cell).endswith(" *")] == ["strong"]
    assert differences.caption == STAR_NOTE and figures.caption is None
    text = write_summary(summary, finished / "stars")[1].read_text()
    assert text.count(STAR_NOTE) == 1 and text.index("| strong |") < text.index(STAR_NOTE)


def test_a_worker_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scansion.study.synthetic.execute._run_logged", _die)
    with pytest.raises(ScansionError, match="a worker process was killed"):
        execute_synthetic(plan_with(), tmp_path, jobs=2)


def _die(*_: object) -> None:
    import os

    os._exit(9)


def test_means_and_differences_are_over_seeds_in_pairs(finished: Path) -> None:
    plan = plan_with()
    cells = execute_synthetic(plan, finished, jobs=1)
    summary = compare(plan, cells)
    free, bound = summary.worlds
    plain, hard = bound.variants
    assert plain.differences == {} and set(hard.differences) == set(METRICS)
    of_seed = {(cell.world, cell.seed): cell for cell in cells}
    fve = {
        name: [of_seed["bound [1]", seed].core[name].fve.value for seed in (0, 1)] for name in ("plain", "hard")
    }  # fmt: skip
    assert plain.by_seed["fve"] == fve["plain"]
    assert plain.estimates["fve"] == Estimate.of_seeds(fve["plain"])
    differences = [a - b for a, b in zip(fve["hard"], fve["plain"], strict=True)]
    assert hard.differences["fve"] == Estimate.of_seeds(differences)
    assert fve["plain"][0] != fve["plain"][1]
    assert free.variants[0].by_seed["recovered_bound"] == [None, None]
    assert free.variants[0].estimates["recovered_bound"].value is None
    assert hard.estimates["mask_match"].value != hard.estimates["mask_chance"].value
    assert plain.estimates["mask_match"].value == pytest.approx(plain.estimates["mask_chance"].value)


def test_a_degenerate_dictionary_is_left_out_and_named(finished: Path, tmp_path: Path) -> None:
    plan = plan_with()
    cells = execute_synthetic(plan, finished, jobs=1)
    broken = cells[1].core["hard"].model_copy(update={"status": "degenerate", "reasons": ["it is dead"]})
    cells[1].core["hard"] = broken
    assert (cells[1].world, cells[1].seed) == ("bound [1]", 0)
    summary = compare(plan, cells)
    hard = summary.worlds[1].variants[1]
    assert hard.by_seed["fve"][0] is None and hard.degenerate == {0: ["it is dead"]}
    assert hard.estimates["fve"] == Estimate(value=hard.by_seed["fve"][1], low=None, high=None)
    assert hard.differences["fve"].low is None
    assert any("hard in world 'bound [1]', seed 0: degenerate: it is dead" in note for note in notes(summary))


def test_what_is_written_says_the_same_as_what_is_shown(finished: Path, tmp_path: Path) -> None:
    plan = plan_with()
    summary = compare(plan, execute_synthetic(plan, finished, jobs=1))
    paths = write_summary(summary, tmp_path)
    assert [path.name for path in paths] == ["synthetic.json", "synthetic.md", "synthetic.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert type(summary).model_validate(json.loads(paths[0].read_text())) == summary
    text = paths[1].read_text()
    estimate = summary.worlds[1].variants[1].estimates["fve"]
    assert f"| hard | {estimate.value:.3f} ±{(estimate.high - estimate.low) / 2:.3f} |" in text
    assert "\n\n\n" not in text and text.count("## World") == 2 and "Difference from plain" in text
    assert len(tables(summary)) == 4


def test_the_command_prints_tables_and_writes_files(finished: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    monkeypatch.setattr("sys.argv", ["scansion", "synth", "--plan", str(path), "--out", str(finished), "--seeds", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "World 'bound [1]'" in shown and "one seed gives no interval" in shown
    assert (finished / "synthetic.md").exists()
    monkeypatch.setattr("sys.argv", ["scansion", "synth", "--plan", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "there is no plan" in capsys.readouterr().err
