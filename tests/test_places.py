"""Paths of commands: each is on disk, or may be a URL and works with one; and a command that is refused leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import App
from fsspec.implementations.memory import MemoryFileSystem

from scansion.cli import evaluating, hub, suites
from scansion.cli.app import app
from scansion.cli.launch import TAKE_URLS, takes_path
from scansion.errors import ConfigError
from scansion.evals import evaluations
from scansion.files import atomic_file, atomic_folder, require_writable
from scansion.locks import only_writer
from scansion.remote import Remote, local_copy
from scansion.study import execute, load_plan
from tests.study.conftest import settings_of
from tests.study.test_synthetic import PLAN as WORLDS


def _commands(parent: App, *before: str) -> Iterator[tuple[str, App]]:
    for name in parent:
        if not name.startswith("-"):
            inner = list(_commands(parent[name], *before, name)) if name in ("assets", "study") else []
            yield from inner or [(" ".join((*before, name)), parent[name])]


PATHS = [
    (command, argument.name)
    for command, each in _commands(app)
    for argument in each.assemble_argument_collection()
    if takes_path(argument)
]
"""Every option of every command that is a path."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty place in memory, with a cache of the test's own."""
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    yield "memory://place"
    MemoryFileSystem.store.clear()


def test_all_commands_are_looked_at() -> None:
    assert len(PATHS) > 35 and {("assets train-gpt2", "--out"), ("look", "--page"), ("eval", "--runs")} <= set(PATHS)
    assert {(command, option) for command in TAKE_URLS for option in TAKE_URLS[command]} <= set(PATHS)


@pytest.mark.parametrize(("command", "option"), [each for each in PATHS if each[1] not in TAKE_URLS.get(each[0], ())])
def test_a_path_that_must_be_on_disk_refuses_a_url(
    run, command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*command.split(), option, "s3://bucket/place")
    assert status == 2 and not out
    assert f"{option} takes a path on disk, not s3://bucket/place" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--config", "--plugin"])
def test_so_do_the_options_of_all_commands(run, option: str) -> None:
    status, _, err = run(option, "s3://bucket/file", "masks")
    assert status == 2 and f"{option} takes a path on disk, not s3://bucket/file" in " ".join(err.split())


def test_nothing_makes_a_folder_called_like_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm_folder: Path, documents: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("s3://bucket/runs/run_0")
    for opened in (atomic_file(place), atomic_folder(place), only_writer(place, "writing")):
        with pytest.raises(ConfigError, match="on disk, not s3://bucket/runs"), opened:
            pass
    with pytest.raises(ConfigError, match="on disk, not s3://bucket/runs/run_0"):
        require_writable(place)
    settings = settings_of(lm_folder, documents) | {"evaluations": {"core": {}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="on disk, not s3://bucket/runs/run_0"):  # as experiment.py --out_dir gives it
        execute(load_plan("plan.yaml"), {0: place})
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_every_path_that_takes_a_url_works_with_one(
    run, lm_folder: Path, documents: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    used: set[tuple[str, str]] = set()

    def done(command: str, *arguments: object) -> str:
        """Carry a command out; positional arguments are given by name here, so that each URL has its option before it."""
        status, out, err = run(*command.split(), *arguments)
        assert status == 0, err
        assert "cache/remote" not in out, out
        words = list(map(str, arguments))
        used.update((command, words[at - 1]) for at, word in enumerate(words) if "://" in word)
        return out + err

    small = ("--d-sae", 32, "--k", 4, "--batch-tokens", 150, "--lr", 1e-2, "--tokens", 1500, "--device", "cpu")
    train, held_out = f"{memory}/stores/train", f"{memory}/stores/held_out"
    done(
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, "--context-length", 16,
        "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--out", f"{memory}/stores",
    )  # fmt: skip
    mask = ("--mask", "adaptive, positions_per_feature: 2")
    done("train", "--store", train, "--out", f"{memory}/runs/plain", *small)
    done("train", "--store", train, "--from", f"{memory}/runs/plain", "--out", f"{memory}/runs/soft", *small, *mask)
    status, _, err = run("train", train, "--from", f"{memory}/runs/plain", "--out", f"{memory}/runs/plain", *small[4:])
    assert status == 2 and "holds the SAE that training starts from" in " ".join(err.split())
    measured = ("--settings", "core: {loss_contexts: 2}, position: {null_draws: 20, groups: 4, replaced_contexts: 2}")
    said = done(
        "eval", "--runs", f"{memory}/runs/plain", "--held-out", held_out, "--evaluations", "core,position", *measured,
        "--report", f"{memory}/runs/report", "--device", "cpu",
    )  # fmt: skip
    assert f"report: {memory}/runs/report/index.html" in said
    assert {"evals/core.json", "evals/position.json"} <= set(Remote(f"{memory}/runs/plain").files())
    assert "index.html" in Remote(f"{memory}/runs/report").files()
    done("compile", "--run", f"{memory}/runs/soft", "--held-out", held_out, "--bands", 4, "--out", "hard")
    done("look", "--run", f"{memory}/runs/plain", "--text", "w5 w9", "--device", "cpu")
    done("steer", "--run", f"{memory}/runs/plain", "--text", "w5 w9", "--feature", 1, "--value", 2, "--tokens", 2)
    done("export", "--run", f"{memory}/runs/plain", "--out", "exported")
    shown = ("--format", "saedashboard", "--held-out", held_out, "--device", "cpu")
    done("export", "--run", f"{memory}/runs/plain", "--out", "shown", *shown)
    done("import", "--source", "exported", "--store", train, "--out", "imported")

    pushed: dict[str, Any] = {}
    monkeypatch.setattr(hub, "push_to_hub", lambda *_, **settings: pushed.update(settings) or "there")
    done("push", "--run", f"{memory}/runs/plain", "--repo", "me/saes")
    assert pushed["scores"], "the results at the URL are read"
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(suites, "evaluate_runs", lambda runs, **settings: asked.append({"runs": runs, **settings}))
    for suite in ("saebench", "sae-probes"):  # which then do what `eval` does
        done(suite, "--runs", f"{memory}/runs/plain", "--held-out", held_out)
        configs = evaluating.parse_evaluations(asked[-1]["evaluations"], asked[-1]["settings"])
        assert configs["core"].model_dump()["loss_contexts"] == 2 and list(configs) <= list(evaluations.names())

    settings = settings_of(lm_folder, documents)
    settings |= {"evaluations": {"core": {"loss_contexts": 2}}, "runs": settings["runs"][:1]}
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))
    assert "0 of 1" not in done("study plan", "--plan", "tiny.yaml", "--out", f"{memory}/study")
    done("study run", "--plan", "tiny.yaml", "--out", f"{memory}/study", "--no-report")
    assert {"run_0/final_info.json", "comparison.json", "notes.txt"} <= set(Remote(f"{memory}/study").files())
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "elsewhere"))
    assert "0 of 1" in done("study plan", "--plan", "tiny.yaml", "--out", f"{memory}/study")
    done("demo", "--plan", "tiny.yaml", "--out", f"{memory}/demo")
    assert {"run_0/final_info.json", "report/index.html"} <= set(Remote(f"{memory}/demo").files())
    Path("worlds.yaml").write_text(yaml.safe_dump(WORLDS, sort_keys=False))
    arguments = ("--plan", "worlds.yaml", "--seeds", 0, "--no-report", "--out", f"{memory}/worlds")
    done("synth", *arguments, "--like", f"{memory}/runs/plain")
    assert "run_0/final_info.json" in Remote(f"{memory}/worlds").files()

    assert used == {(command, option) for command in TAKE_URLS for option in TAKE_URLS[command]}
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(":")]


@pytest.fixture
def workplace(run, lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with stores, a trained run and plans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    settings = settings_of(lm_folder, documents)
    settings |= {"evaluations": {"core": {"loss_contexts": 2}}, "runs": settings["runs"][:1]}
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))
    Path("empty.txt").write_text(" ")
    Path("worlds.yaml").write_text(yaml.safe_dump(WORLDS, sort_keys=False))
    wrong = {"name": "wide", "sae": {"architecture": "topk", "d_sae": 32, "k": 4}}
    masked = {**wrong, "sae": {**wrong["sae"], "mask": {"family": "bands", "count": 5}}}
    Path("wrong.yaml").write_text(yaml.safe_dump({**settings, "runs": [wrong, masked]}))
    Path("on_the_fly.yaml").write_text(yaml.safe_dump({**settings, "harvest": {"on_the_fly": True}}))
    Path("missing.yaml").write_text(
        yaml.safe_dump({**settings, "corpus": None, "store": {"train": "none/train", "held_out": "none/held_out"}})
    )
    status, _, err = run(
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, "--context-length", 16,
        "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--out", "stores",
    )  # fmt: skip
    assert status == 0, err
    status, _, err = run("train", "stores/train", "--d-sae", 32, "--k", 4, "--tokens", 0, "--out", "runs/plain")
    assert status == 0, err
    return tmp_path


REFUSED = {
    "no store": "train none --out new/run",
    "mask that does not fit": "train stores/train --mask bands,count:5 --d-sae 32 --k 4 --out new/run",
    "features that do not fit": "train stores/train --d-sae 32 --k 64 --out new/run",
    "empty batches": "train stores/train --d-sae 32 --k 4 --batch-tokens 0 --out new/run",
    "token that is not there": "train stores/train --d-sae 32 --k 4 --exclude-tokens 99999 --out new/run",
    "start from nothing": "train stores/train --from none --out new/run",
    "start from another width": "train stores/train --from runs/plain --d-sae 64 --out new/run",
    "no text": "harvest --model {lm} --hook-point layers.1 --source none.txt --out new/stores",
    "no layer": "harvest --model {lm} --hook-point layers.9 --source {text} --context-length 16 --out new/stores",
    "no module": "harvest --model {lm} --hook-point model.layers.1.nothing --source {text} --context-length 16"
    " --held-out-tokens 320 --held-out-fraction 0.25 --device cpu --out new/stores",
    "empty text": "harvest --model {lm} --hook-point layers.1 --source empty.txt --context-length 16 --out new/stores",
    "text for the fly at a URL": "harvest --model {lm} --hook-point layers.1 --source {text} --context-length 16"
    " --on-the-fly --out memory://place/stores",
    "no run": "eval none --held-out stores/held_out --report new/report",
    "no held-out store": "eval runs/plain --held-out none --report new/report",
    "evaluation that does not fit": "eval runs/plain --held-out stores/held_out --evaluations recovery --report new/report",
    "setting that does not fit": "eval runs/plain --held-out stores/held_out --settings core:{{contexts:-1}} --report new/r",
    "no plan": "study run none --out new/study",
    "run that is not in the plan": "study run tiny.yaml --only 7 --out new/study",
    "mask of the second run": "study run wrong.yaml --out new/study",
    "plan of a missing store": "study run missing.yaml --out new/study",
    "on the fly on a cluster": "study run on_the_fly.yaml --on local --out new/study",
    "cluster that is not there": "study run tiny.yaml --on 127.0.0.1:9 --out new/study",
    "odd cluster": "harvest --model {lm} --source {text} --on nowhere --out new/stores",
    "estimate of a wrong plan": "study plan wrong.yaml --out new/study",
    "demo of nothing": "demo --plan none --out new/demo",
    "demo of a wrong plan": "demo --plan wrong.yaml --out new/demo",
    "synth without a world": "synth --plan tiny.yaml --out new/synth",
    "synth like nothing": "synth --plan worlds.yaml --like runs/plain --out new/synth",
    "nothing to compile": "compile runs/plain --held-out stores/held_out --out new/hard",
    "nothing to import": "import runs --store stores/train --out new/run",
    "nothing to export": "export none --out new/exported",
    "nothing to compare": "compare runs/plain --out new/comparison",
    "no baseline": "compare runs/plain --baseline nobody --out new/comparison",
    "nothing to report": "report runs --out new/report",
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_is_refused_leaves_nothing(run, workplace: Path, lm_folder: Path, documents: Path, mistake: str) -> None:
    def there() -> set[str]:
        return {str(path.relative_to(workplace)) for path in workplace.rglob("*") if "cache" not in path.parts}

    before = there()
    status, out, err = run(*REFUSED[mistake].format(lm=lm_folder, text=documents).split())
    assert status == 2, (out, err)
    assert there() == before, err


def test_a_plan_that_is_only_estimated_leaves_nothing(run, workplace: Path) -> None:
    before = set(workplace.iterdir())
    status, _, err = run("study", "plan", "tiny.yaml", "--out", "new/study")
    assert status == 0, err
    assert set(workplace.iterdir()) == before


def test_a_url_that_is_refused_leaves_nothing_in_the_cache(run, workplace: Path, memory: str) -> None:
    status, _, err = run("train", "none", "--out", f"{memory}/runs/new")
    assert status == 2, err
    assert not local_copy(memory).parent.exists() and not Remote(memory).files()
