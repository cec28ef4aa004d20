"""Every example is one file that goes through the command line with ``--plugin``: trained, scored, compared, reported."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scansion import registry
from scansion.evals import evaluations
from scansion.lm import sites
from scansion.masks import MASKS
from scansion.records import SEAL
from scansion.registry import PLUGINS
from scansion.sae import ARCHITECTURES
from tests.study.conftest import settings_of

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def nothing_registered_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Plugins of one test are unknown to the next."""
    monkeypatch.setattr(MASKS, "_items", dict(MASKS._items))
    monkeypatch.setattr(evaluations, "_items", dict(evaluations._items))
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    monkeypatch.setattr(sites, "_SITES", dict(sites._SITES))
    monkeypatch.setattr(registry, "_LOADED", {})
    monkeypatch.setenv(PLUGINS, "")
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    yield
    forget_plugins()


def forget_plugins() -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.startswith("scansion_plugin_")]:
        del sys.modules[name]


def write_plan(folder: Path, lm_folder: Path, documents: Path, **changes: object) -> Path:
    """A plan of two runs, one without and one with a mask of one's own."""
    settings = settings_of(lm_folder, documents)
    del settings["evaluations"]["sparse_probing"]
    masked = {"architecture": "topk", "d_sae": 32, "k": 4, "mask": {"family": "periodic", "period": 2}}
    settings["runs"] = [settings["runs"][0], {"name": "taking turns", "sae": masked}]
    folder.mkdir(exist_ok=True)
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def test_a_mask_from_a_plan_to_the_page(
    run, lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path / "plans", lm_folder, documents, plugins=["periodic_mask.py"])
    shutil.copy(EXAMPLES / "periodic_mask.py", plan.parent)
    out = tmp_path / "study"
    status, printed, err = run("study", "run", plan, "--out", out)
    assert status == 0, err
    info = json.loads((out / "run_1/final_info.json").read_text())["taking turns"]
    assert info["status"] == "ok" and info["means"]["fve"] > 0
    assert json.loads((out / "run_1/plan.json").read_text())["plan"]["plugins"] == ["periodic_mask.py"]
    assert "periodic" in (out / "report/index.html").read_text()
    # A new process knows nothing of it.
    monkeypatch.setattr(MASKS, "_items", {name: item for name, item in MASKS._items.items() if name != "periodic"})
    monkeypatch.setenv(PLUGINS, "")
    forget_plugins()
    monkeypatch.setattr(registry, "_LOADED", {})
    held_out = next((tmp_path / "cache").glob("stores/*held_out*"))
    trained = out / "run_1/seed_0"
    evaluate = ["eval", trained, "--held-out", held_out, "--evaluations", "core",
                "--settings", "core: {loss_contexts: 0}"]  # fmt: skip
    for command in (["report", out], evaluate):
        status, _, err = run(*command)
        assert status == 2 and "no mask family is called 'periodic'" in err, err
        assert "was made with the plugin periodic_mask.py: put --plugin periodic_mask.py before" in err, err
        assert len(err.strip().splitlines()) == 1
    plugin = ["--plugin", EXAMPLES / "periodic_mask.py"]
    status, printed, err = run(*plugin, *evaluate)
    assert status == 0 and "periodic" in printed and "is not as it was" not in err, err
    status, printed, err = run(*plugin, "compile", trained, "--bands", 1, "--held-out", held_out,
                               "--out", tmp_path / "compiled")  # fmt: skip
    assert status == 0 and "FVE before" in printed, err
    status, printed, err = run(*plugin, "compare", *sorted(out.glob("run_*")))
    assert status == 0 and "taking turns" in printed, err
    status, printed, err = run(*plugin, "masks", "periodic")
    assert status == 0 and "period = 4" in printed, err


def test_a_mask_is_trained_from_flags(run, store, tmp_path: Path) -> None:
    train = ["train", store.folder, "--d-sae", 32, "--k", 4, "--tokens", 0, "--mask", "periodic, period: 2",
             "--out", tmp_path / "x"]  # fmt: skip
    status, _, err = run(*train)
    assert status == 2 and "no mask family is called 'periodic'" in err
    status, _, err = run("--plugin", EXAMPLES / "periodic_mask.py", *train)
    assert status == 0, err
    assert "family: periodic" in (tmp_path / "x/config.yaml").read_text()


def test_a_run_says_with_which_version_of_a_plugin_it_was_made(
    run, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = shutil.copy(EXAMPLES / "periodic_mask.py", tmp_path)
    train = ["train", store.folder, "--d-sae", 32, "--k", 4, "--tokens", 0, "--mask", "periodic, period: 2", "--out"]
    status, _, err = run("--plugin", plugin, *train, tmp_path / "x")
    assert status == 0, err
    [recorded] = yaml.safe_load((tmp_path / "x/config.yaml").read_text())["plugins"]
    assert recorded["file"] == "periodic_mask.py" and len(recorded["sha256"]) == 16
    evaluate = ["eval", tmp_path / "x", "--held-out", store.folder, "--evaluations", "core",
                "--settings", "core: {loss_contexts: 0}"]  # fmt: skip
    Path(plugin).write_text(Path(plugin).read_text() + "\n# changed\n")
    monkeypatch.setattr(MASKS, "_items", {name: item for name, item in MASKS._items.items() if name != "periodic"})
    forget_plugins()
    status, _, err = run("--plugin", plugin, *evaluate)
    assert status == 0 and err.count("periodic_mask.py is not as it was when") == 1, err
    # A run made before plugins were recorded.
    config = yaml.safe_load((tmp_path / "x/config.yaml").read_text())
    del config["plugins"], config[SEAL]
    (tmp_path / "x/config.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run("--plugin", plugin, *evaluate)
    assert status == 0 and "is not as it was" not in err, err


def test_an_architecture_is_trained_from_flags_of_its_own(run, store, tmp_path: Path) -> None:
    plugin = ["--plugin", EXAMPLES / "architecture.py"]
    train = ["train", store.folder, "--d-sae", 32, "--tokens", 0, "--architecture", "tanh", "--width", 0.25,
             "--out", tmp_path / "x"]  # fmt: skip
    status, _, err = run(*train)
    assert status == 2 and "Unknown option" in err and "--width" in err, err
    status, _, err = run(*plugin, *train)
    assert status == 0, err
    written = yaml.safe_load((tmp_path / "x/config.yaml").read_text())["sae"]
    assert written["width"] == 0.25 and written["coefficient"] == 0.04
    status, printed, _ = run(*plugin, "train", "--help")
    help_ = " ".join(printed.replace("│", " ").split())
    assert status == 0 and "Activations well above this all cost the same. [tanh: default 0.1]" in help_
    assert "relu, switch, temporal_crosscoder, tsae, tanh." in help_ and "[jumprelu: default 0.05]" in help_
    status, printed, _ = run(*plugin, "architectures", "tanh")
    assert "  set width = 0.1: Activations well above this all cost the same." in printed
    status, printed, _ = run("--plugin", EXAMPLES / "architecture.py", "architectures")
    assert {line.split(":")[0] for line in printed.splitlines()} == set(ARCHITECTURES.names()) >= {"tanh", "topk"}


def test_settings_that_share_a_name_can_both_be_given(run, store, tmp_path: Path) -> None:
    """An architecture's ``lr`` is not training's, and its ``k`` may be of another type than that of TopK."""
    (tmp_path / "mine.py").write_text(
        (EXAMPLES / "architecture.py")
        .read_text()
        .replace("width: float", "lr: float = 5.0\n    k: float = 0.5\n    width: float")
    )
    train = ["--plugin", tmp_path / "mine.py", "train", store.folder, "--d-sae", 32, "--tokens", 0]
    status, _, err = run(
        *train, "--architecture", "tanh", "--lr", 0.1, "--sae-lr", 2, "--k", 0.75, "--out", tmp_path / "x"
    )
    assert status == 0, err
    written = yaml.safe_load((tmp_path / "x/config.yaml").read_text())
    assert written["sae"]["lr"] == 2 and written["sae"]["k"] == 0.75 and written["training"]["lr"] == 0.1
    status, _, err = run(*train, "--architecture", "topk", "--k", 3, "--out", tmp_path / "y")
    assert status == 0, err
    assert yaml.safe_load((tmp_path / "y/config.yaml").read_text())["sae"]["k"] == 3


def test_a_plugin_that_is_not_there_is_one_line(run, tmp_path: Path, lm_folder: Path, documents: Path) -> None:
    status, _, err = run("--plugin", tmp_path / "none.py", "masks")
    assert status == 2 and "there is no plugin at" in err and len(err.strip().splitlines()) == 1
    plan = write_plan(tmp_path / "plans", lm_folder, documents, plugins=["none.py"])
    status, _, err = run("study", "plan", plan)
    assert status == 2 and f"there is no plugin at {plan.parent / 'none.py'}" in err


def test_experiment_takes_plugins(lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import experiment

    monkeypatch.setattr(experiment, "PLAN", write_plan(tmp_path / "plans", lm_folder, documents, position=None))
    plugin = f"--plugin={EXAMPLES / 'periodic_mask.py'}"
    monkeypatch.setattr("sys.argv", ["experiment.py", f"--out_dir={tmp_path / 'run_1'}", plugin])
    with pytest.raises(SystemExit) as exit_:
        experiment.main()
    assert exit_.value.code == 0, capsys.readouterr().err
    assert "taking turns: ok" in capsys.readouterr().out


def test_an_evaluation_from_a_plan_to_the_page(run, lm_folder: Path, documents: Path, tmp_path: Path) -> None:
    settings = settings_of(lm_folder, documents)
    settings |= {"evaluations": {"core": {"loss_contexts": 0}, "evenness": {"n_contexts": 8}}}
    settings |= {"runs": settings["runs"][:2], "primary_metric": "evenness"}
    plan, out = tmp_path / "plan.yaml", tmp_path / "study"
    plan.write_text(yaml.safe_dump(settings))
    status, _, err = run("study", "run", plan, "--out", out)
    assert status == 2 and "no evaluation is called 'evenness'" in err and "--plugin FILE.py" in err, err
    plugin = ["--plugin", EXAMPLES / "evaluation.py"]
    status, printed, err = run(*plugin, "study", "run", plan, "--out", out)
    assert status == 0 and "evenness" in printed, err  # narrow tables may break the heading
    assert "evenness of activity" in (out / "comparison.md").read_text()
    info = json.loads((out / "run_0/final_info.json").read_text())["plain"]
    assert 0 < info["means"]["evenness"] < 1 and "evenness" in info["provenance"]["evaluated_on"]
    assert "evenness of activity (primary)" in (out / "notes.txt").read_text()
    page = (out / "report/index.html").read_text()
    assert "Other evaluations" in page and "How many features carry the activity" in page
    status, printed, err = run(*plugin, "compare", out / "run_0", out / "run_1")
    assert status == 0 and "evenness" in printed, err  # narrow tables may break the heading
    held_out = next((tmp_path / "cache").glob("stores/*held_out*"))
    status, printed, err = run(*plugin, "eval", out / "run_0/seed_0", "--held-out", held_out,
                               "--evaluations", "core,evenness",
                               "--settings", "core: {loss_contexts: 0}, evenness: {n_contexts: 8}")  # fmt: skip
    assert status == 0 and "evenness: 1 of 1 already evaluated" in err and "evenness of activity" in printed, err
    status, printed, _ = run(*plugin, "evaluations", "evenness")
    assert "measures evenness (evenness of activity; higher is better)" in printed
    assert "set n_contexts = 64: Held-out contexts to encode." in printed


@pytest.mark.parametrize(
    ("example", "changes", "unknown", "on_the_page"),
    [
        (
            "architecture.py",
            {"runs": [{"name": "levelling", "sae": {"architecture": "tanh", "d_sae": 32, "mask": {"family": "soft"}}}]},
            "no architecture is called 'tanh'",
            "tanh",
        ),
        (
            "hook_point.py",
            {
                "hook_point": "mlp_hidden.1",
                "runs": [{"name": "plain", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}}],
            },
            "hook point 'mlp_hidden.1' is not understood",
            "mlp_hidden.1",
        ),
    ],
)
def test_an_example_from_a_plan_to_the_page(
    run, lm_folder: Path, documents: Path, tmp_path: Path, example, changes, unknown, on_the_page
) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "study"
    evaluated = {"evaluations": {"core": {"loss_contexts": 4}}}
    plan.write_text(yaml.safe_dump({**settings_of(lm_folder, documents), **evaluated, **changes}))
    status, _, err = run("study", "run", plan, "--out", out)
    assert status == 2 and unknown in err and "--plugin FILE.py" in err and len(err.strip().splitlines()) == 1
    plugin = ["--plugin", EXAMPLES / example]
    status, _, err = run(*plugin, "study", "run", plan, "--out", out)
    assert status == 0, err
    assert ("no logit lens" in err) == (example == "hook_point.py")  # whose decoder rows are not of the residual stream
    [name] = (settings["name"] for settings in changes["runs"])
    info = json.loads((out / "run_0/final_info.json").read_text())[name]
    assert info["status"] == "ok" and info["means"]["fve"] > 0 and info["means"]["ce_loss_recovered"] is not None
    assert on_the_page in (out / "report/index.html").read_text()
    status, printed, err = run(*plugin, "compare", out / "run_0")
    assert status == 0 and name in printed, err
    held_out = next((tmp_path / "cache").glob("stores/*held_out*"))
    status, printed, err = run(*plugin, "eval", out / "run_0/seed_0", "--held-out", held_out, "--evaluations", "core",
                               "--settings", "core: {loss_contexts: 4}")  # fmt: skip
    assert status == 0 and name in printed, err
