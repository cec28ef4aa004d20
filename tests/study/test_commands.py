"""``scansion study run | study plan | compare`` as a user calls them, on a tiny plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scansion.study import trials


@pytest.fixture
def plan(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    quick = {**settings, "evaluations": {"core": {"loss_contexts": 0}}}
    path.write_text(yaml.safe_dump({**quick, "hypothesis": "masks help", "minimum_effect": 0.5}))
    return path


def test_a_study_is_planned_run_and_compared(run, plan: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    status, out, err = run("study", "plan", plan, "--only", "0,1", "--seeds", 2, "--out", out_dir)
    assert status == 0, err
    assert "asked: masks help" in out and "2 of 2" in out and "in all" in out and "untrained" not in out
    assert "one seed per run" not in out
    assert "one seed per run" in run("study", "plan", plan, "--only", "0", "--seeds", 1, "--out", out_dir)[1]
    status, out, err = run("study", "run", plan, "--only", "0,1", "--seeds", 2, "--out", out_dir)
    assert status == 0, err
    assert "Differences from plain" in out and (out_dir / "comparison.md").exists()
    assert sorted(path.name for path in (out_dir / "run_1").glob("seed_*")) == ["seed_0", "seed_1"]
    assert not (out_dir / "run_2").exists()
    assert "<title>" in (out_dir / "report/index.html").read_text()
    status, out, err = run("study", "run", plan, "--seeds", 2, "--no-report", "--out", out_dir)
    assert status == 0, err
    assert (
        "report:" not in out and "already trained" in err and "untrained: degenerate: no training step was taken" in out
    )
    status, out, err = run("compare", *(out_dir / f"run_{i}" for i in range(3)), "--baseline", "masked", "--every")
    assert status == 0, err
    assert "Differences from masked" in out and "normalised MSE" in out


def test_token_ids_beyond_the_vocabulary_are_refused_at_plan_time(run, plan: Path, tmp_path: Path) -> None:
    for place in ("training", "evaluations"):
        settings = yaml.safe_load(plan.read_text())
        settings[place] = {**settings[place], **({"exclude_tokens": [10**6]} if place == "training" else {})}
        if place == "evaluations":
            settings[place] = {"core": {"loss_contexts": 0, "exclude_tokens": [10**6]}}
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(settings))
        status, _, err = run("study", "run", tmp_path / "wrong.yaml", "--out", tmp_path / "out")
        assert status == 2 and "exclude_tokens: 1000000 is no token of" in err
    assert not list((tmp_path / "out").rglob("config.yaml"))


def test_the_same_name_twice_is_told_apart(run, plan: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("study", "run", plan, "--only", "0", "--no-report", "--out", tmp_path / name)[0] == 0
    status, out, _ = run("compare", tmp_path / "a/run_0", tmp_path / "b/run_0")
    assert status == 0 and f"plain ({tmp_path / 'b/run_0'})" in out.replace("\n", "")
    assert "One seed per run" in out and "95% intervals" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "0,x"], "--only takes numbers of runs separated by commas"),
        (["--only", "0,3"], "has no run 3; it has 0 to 2"),
    ],
)
def test_mistakes_are_one_line(run, plan: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    for command in ("run", "plan"):
        status, _, err = run("study", command, plan, *arguments, "--out", tmp_path / "out")
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_shows_in_the_exit_status_and_in_the_tables(
    run, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", lambda *_: 1 / 0)
        status, out, err = run("study", "run", plan, "--only", "0", "--no-report", "--out", out_dir)
    assert status == 2 and "plain: failed: seed 0 training failed: ZeroDivisionError" in out
    assert err.splitlines()[-1] == "error: plain failed, as said above; --retry tries again"
    failure = out_dir / "run_0/seed_0/failure.json"
    assert f"the traceback is in {failure}" in err
    record = json.loads(failure.read_text())
    assert record["error"] == "training failed: ZeroDivisionError: division by zero"
    assert record["traceback"].startswith("Traceback (most recent call last)") and "in _isolated" in record["traceback"]
    (out_dir / "run_0/final_info.json").unlink()
    status, out, _ = run("compare", out_dir / "run_0")
    assert status == 0 and "plain: unfinished: final_info.json says nothing of it" in out
    status, out, err = run("study", "run", plan, "--only", "0", "--no-report", "--retry", "--out", out_dir)
    assert status == 0, err


def test_a_folder_that_is_no_run_is_refused(run, tmp_path: Path) -> None:
    status, _, err = run("compare", tmp_path)
    assert status == 2 and "is not a run of a study: it has no final_info.json" in err
    for said, where in {
        '{"a": {"means": 3}}': "a.means",
        '{"a": 5}': "a: ",
        '{"a": {"provenance": [1]}}': "a.provenance: ",
    }.items():
        (tmp_path / "final_info.json").write_text(said)
        status, _, err = run("compare", tmp_path)
        assert status == 2 and f"does not say what a run says ({where}" in err and len(err.splitlines()) == 1


def test_the_demo_has_a_page_of_two_runs_before_all_are_done(
    run, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.cli.studies._FIRST_OF_DEMO", "0,1")
    monkeypatch.chdir(tmp_path)
    plan.rename("demo")  # a plan of one's own takes the place of the bundled one
    status, out, err = run("demo", "--out", "out")
    assert status == 0, err
    assert "a first page, of two runs, is in out/report/index.html" in err
    assert out.count("report: out/report/index.html") == 2
    assert "plain" in out and "masked" in out and "untrained: degenerate" in out
    status, _, err = run("demo", "--out", "out")
    assert status == 0 and "a first page" not in err
