"""Every benchmark runs at a tiny size without the peers, and its result becomes a table and a picture."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    equal_tokens,
    figures,
    gpu,
    gpu_rows,
    gpu_tables,
    growth,
    harvest,
    jumprelu,
    on_the_fly,
    profile,
    quality,
    recipe,
    study,
    table,
    training,
    ways,
)
from benchmarks.peer_saes import Batches, Task
from benchmarks.peers import Peer
from benchmarks.rounds import Record, take_turns
from benchmarks.stand_ins import StandIns
from benchmarks.training_tables import PLAIN, Result
from scansion.activations import ActivationStore
from scansion.interop.saelens import write_saelens
from scansion.lm import LanguageModel
from scansion.records import read_json, write_json
from scansion.sae import SAEMetadata, build_sae

SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 256, "k": 4, "batch_tokens": 256}


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[[str, str], tuple[Result, str]]:
    """``drawn(table, file)``: a result, and its table after all pictures have been drawn."""

    def make(name: str, file: str) -> tuple[Result, str]:
        figures.draw(results=tmp_path, images=tmp_path / "images")
        return read_json(tmp_path / file), table.block(name, tmp_path, tmp_path / "images", "wall")

    return make


def test_everyone_takes_a_turn_a_round_and_the_first_does_not_count() -> None:
    turns: list[tuple[str, int]] = []
    actions = {name: lambda index, name=name: turns.append((name, index)) for name in "ab"}
    summaries = list(take_turns(actions, 2))
    assert turns == [(name, index) for index in range(3) for name in "ab"]
    assert len(summaries) == 2 and summaries[-1].keys() == {"a", "b"}


def test_a_result_stays_until_something_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("{}")
    record = Record(path, "training", {})
    record.note(work={})
    assert read_json(path) == {}
    record.measure("group", {"a": lambda _: None}, 1, lambda times: {"subjects": len(times)})
    assert read_json(path)["group"]["subjects"] == 1
    assert read_json(path)["work"] == {}


def test_the_script_for_a_gpu_checks_and_times_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer("no_such_module", lambda *_: lambda _: None, ("topk",))
    present = Peer("benchmarks", lambda *_: lambda _: None, ("topk", "relu"))
    monkeypatch.setattr(gpu, "PEERS", {"absent": absent, "present": present})
    gpu.measure(out=tmp_path / "gpu.json", device="cpu", small=True)
    found = read_json(tmp_path / "gpu.json")
    ways = {f"{kind}, {mask}" for kind, mask, dense in gpu.STEPS if not dense}
    assert found["correct"].keys() == ways < found["steps A"].keys()
    for row in found["correct"].values():
        assert abs(row["fve_dense_less_fast"]) < 1e-4 and row["same_bytes_twice"], row
    assert all(row["ms"] > 0 for part in ("limits A", "steps A") for row in found[part].values())
    assert found["peers A"].keys() == {"present topk, float32", "present relu, float32"}
    assert all(row["tokens_per_second"] > 0 for row in found["end to end"].values())
    text = capsys.readouterr().out
    assert "absent: not measured, skipped: ModuleNotFoundError: No module named 'no_such_module'." in text
    rows = {*found["correct"], *found["steps A"], *found["peers A"], *found["end to end"]}
    assert all(f"| {name} |" in text for name in rows)


def test_what_fails_on_a_gpu_is_written_down_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = gpu_rows.Rows(tmp_path / "gpu.json", torch.device("cpu"), until=float("inf"))
    rows.add("steps A", "topk, none", lambda: 1 // 0)
    rows.add("limits A", "fine", lambda: {"ms": 1.0})
    with rows.ending_at(0.0):
        rows.add("end to end", "late", lambda: 1 // 0)
    with gpu_rows.stopping_after(0.05):
        rows.add("steps A", "endless", lambda: time.sleep(60))
    failed = "ZeroDivisionError: integer division or modulo by zero"
    found = read_json(tmp_path / "gpu.json")
    assert found == {
        "steps A": {
            "topk, none": {"failed": failed},
            "endless": {"failed": "TimeoutError: the script's time was over"},
        },
        "limits A": {"fine": {"ms": 1.0}},
        "end to end": {"late": {"skipped": "out of time"}},
    }
    text = gpu_tables.tables({"machine": {"device": "a", "torch": "b", "sums": "c"}, **found})
    assert f"| topk, none | failed: {failed} |" in text and "| late | skipped: out of time |" in text


def test_only_packages_that_no_training_step_uses_get_stand_ins() -> None:
    with StandIns():
        assert importlib.import_module("babe.anything").Anything
        assert importlib.import_module("json") is json
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module")
    for name in ("babe", "babe.anything"):
        sys.modules.pop(name, None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("babe")


@pytest.mark.parametrize("apart", [False, True])
def test_training(apart: bool, tmp_path: Path, drawn: Callable[[str, str], tuple[Result, str]]) -> None:
    kinds = ("topk", "relu")
    plain = {"square": 32, "copied": 1024}
    training.measure(out=tmp_path / "training.json", kinds=kinds, rounds=1, peers=False, apart=apart, **SIZES, **plain)
    result, text = drawn("training", "training.json")
    assert ([key for key in result if key in ("topk", "relu", "topk relu")] == list(kinds)) == apart
    times = {name: own for key in ("topk", "relu", "topk relu") for name, own in _times(result, key).items()}
    assert times.keys() == result["work"].keys()
    assert all(f"| {name} |" in text for name in times if name not in PLAIN)
    assert "speed_training.png" in text
    assert "scansion topk, dense form" in table.block("aims", tmp_path, tmp_path, "cpu")
    assert "scansion relu" in table.block("floors", tmp_path, tmp_path, "cpu")


def test_ways(tmp_path: Path, drawn: Callable[[str, str], tuple[Result, str]]) -> None:
    ways.measure(out=tmp_path / "ways.json", rounds=1, **SIZES)
    result, text = drawn("ways", "ways.json")
    assert result["topk, soft mask"]["way"] == result["matryoshka, no mask"]["way"] == ["sparse"]
    assert result["jumprelu, 8 bands"]["way"] == ["fused"]
    assert "| topk, soft mask | sparse |" in text


def _times(result: Result, key: str) -> dict[str, Any]:
    return result[key]["times"] if key in result else {}


def test_growth(tmp_path: Path, drawn: Callable[[str, str], tuple[Result, str]]) -> None:
    chosen = ("bands", "n_saes")
    growth.measure(out=tmp_path / "growth.json", only=chosen, rounds=1, memory=False, square=32, **SIZES)
    result, text = drawn("growth", "growth.json")
    for name in chosen:
        assert f"| {name} |" in text
        assert all(len(own) == len(result[name]["values"]) for own in result[name]["seconds"].values())


def test_memory_is_at_least_that_of_weights_and_moments() -> None:
    point = growth.Point(d_in=256, d_sae=4096, k=4, batch_tokens=128)
    assert growth.peak_of(point) > 4 * 4 * 2 * point.d_in * point.d_sae


def test_profile(tmp_path: Path, drawn: Callable[[str, str], tuple[Result, str]]) -> None:
    profile.measure(out=tmp_path / "profile.json", steps=2, **SIZES)
    result, text = drawn("profile", "profile.json")
    for mask in ("none", "8"):
        assert sum(result[mask]["groups"].values()) == pytest.approx(result[mask]["seconds"], rel=0.05)
        assert result[mask]["groups"]["matrix products"] > 0
    assert "| 8 bands, ms |" in text


def test_operations_are_grouped_by_what_they_are() -> None:
    assert profile.group_of("aten::addmm") == "matrix products"
    assert profile.group_of("aten::copy_") == "copies and gathers"
    assert profile.group_of("aten::never_heard_of") == profile.OTHER
    assert profile.group_of("scansion::sparse_backward") == "sums over active entries, in C"
    assert profile.group_of("scansion::encode") == profile.OWN
    assert profile.group_of("_DecodeBackward") == profile.BETWEEN


def test_harvest(
    tmp_path: Path,
    lm_folder: Path,
    documents: Path,
    drawn: Callable[[str, str], tuple[Result, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harvest.measure(
        out=tmp_path / "harvest.json",
        model=str(lm_folder),
        source=str(documents),
        layer=1,
        context_length=16,
        n_contexts=8,
        lm_batch_size=4,
        rounds=1,
        peers=False,
        square=32,
    )
    result, text = drawn("harvest", "harvest.json")
    assert result["settings"]["tokens"] == 8 * 16
    assert all(f"| {name} |" in text for name in result["harvest"]["times"] if name not in PLAIN)


def test_study(
    tmp_path: Path,
    lm_folder: Path,
    documents: Path,
    drawn: Callable[[str, str], tuple[Result, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study.measure(
        out=tmp_path / "study.json",
        model=str(lm_folder),
        source=str(documents),
        tokens=512,
        layer=1,
        d_sae=64,
        k=2,
        context_length=32,
        peers=False,
        square=32,
    )
    result, text = drawn("study", "study.json")
    for name in study.STUDIES:
        spent = result[f"scansion, {name}"]["seconds"]
        assert spent["ten_runs"] == pytest.approx(spent["load_and_lm"] + spent["train"])
        assert f"| scansion, {name} |" in text


def test_quality_is_measured_once_for_each_run_and_precision(
    tmp_path: Path,
    lm_folder: Path,
    documents: Path,
    drawn: Callable[[str, str], tuple[Result, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure() -> None:
        quality.measure(
            out=tmp_path / "quality.json",
            model=str(lm_folder),
            source=str(documents),
            lm_dtype="float32",
            layer=1,
            context_length=32,
            tokens=512,
            held_out_tokens=128,
            d_sae=64,
            k=2,
            batch_tokens=64,
            seeds=1,
        )

    measure()
    result, text = drawn("quality", "quality.json")
    for name, subject in quality.SUBJECTS.items():
        assert f"| {name}, seed 0 |" in text
        for precision in quality.PRECISIONS:
            run = result["runs"][f"{name}, seed 0, {precision}"]
            assert run["ways"] == [subject.way] and run["precision"] == precision and run["fve"] <= 1
    result["runs"]["topk, seed 0, bf16"]["fve"] = 7.0
    write_json(tmp_path / "quality.json", result)
    measure()
    assert read_json(tmp_path / "quality.json")["runs"] == result["runs"]
    assert "which is not below 0.002" in drawn("quality", "quality.json")[1]


def test_the_search_for_a_recipe_trains_each_combination_once_and_adds_to_its_table(
    tmp_path: Path, store: ActivationStore, drawn: Callable[[str, str], tuple[Result, str]]
) -> None:
    def measure(*rates: float, masks: tuple[str, ...] = ("none",)) -> list[dict[str, object]]:
        out = tmp_path / "recipe.json"
        recipe.measure(
            store.folder, store.folder, out=out, tokens=(300,), batches=(30,), rates=rates, masks=masks, d_sae=64
        )
        return read_json(out)["runs"]

    (first,) = measure(1e-3)
    assert first["steps"] == 11 and first["fve_without_outliers"] <= 1 and 20 < first["l0"] <= 32
    again = measure(1e-3, 2e-3, masks=("none", "bands, count: 4, shared: 0.5"))
    assert again[0] == first and len(again) == 4
    text = drawn("recipe", "recipe.json")[1]
    rows = [line for line in text.splitlines() if line.startswith("| 300 |")]
    assert len(rows) == 4 and sum("**" in row for row in rows) == 2, "the best of each mask is in bold"
    assert {(run["lr"], run["mask"]) for run in again} == {
        (rate, mask) for rate in (1e-3, 2e-3) for mask in ("none", "bands, count: 4, shared: 0.5")
    }


def test_training_on_the_fly_is_compared_with_stored_activations(
    tmp_path: Path,
    lm_folder: Path,
    documents: Path,
    drawn: Callable[[str, str], tuple[Result, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))

    def measure(*buffers: int) -> list[dict[str, Any]]:
        on_the_fly.measure(
            out=tmp_path / "on_the_fly.json", model=str(lm_folder), source=str(documents), hook_point="layers.1",
            context_length=16, text_tokens=1600, held_out_tokens=320, tokens=600, d_sae=96, seeds=1, buffers=buffers,
        )  # fmt: skip
        return read_json(tmp_path / "on_the_fly.json")["runs"]

    first = measure()
    assert [(run["buffer"], run["mask"]) for run in first] == [(None, "none"), (None, "bands, preset: groups")]
    again = measure(1280)
    assert again[:2] == first and [run["buffer"] for run in again[2:]] == [1280, 1280]
    differs = again[2]["fve_without_outliers"] - first[0]["fve_without_outliers"]
    assert (
        differs
        and f"| {differs:+.4f} ({differs:+.4f} to {differs:+.4f}) |" in drawn("on_the_fly", "on_the_fly.json")[1]
    )


def test_saes_of_ours_and_of_a_peer_read_the_same_tokens_and_are_scored_alike(
    tmp_path: Path,
    store: ActivationStore,
    lm: LanguageModel,
    drawn: Callable[[str, str], tuple[Result, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[torch.Tensor] = []

    def peer(task: Task, batches: Batches, folder: Path) -> Path:
        """A peer that learns nothing, and saves an SAE in the format of SAELens."""
        assert [len(x) for x in batches] == [batches.batch_tokens] * batches.n_steps
        n_positions = len(batches.stream.positions)
        read.append(torch.cat([x.unflatten(0, (n_positions, -1)) for x in batches], dim=1))
        sae = build_sae(task.sae, store.d_in, store.n_positions, torch.Generator().manual_seed(0))
        where = {"model": task.model, "model_revision": "", "hook_point": store.identity.hook_point, "store_key": ""}
        steps = {"steps": 1, "tokens": 1, "seed": 0, "training": {}, "input_scale": 1.0, "use_position_0": False}
        write_saelens(sae, SAEMetadata(**where, contexts="", context_length=store.n_positions, **steps), folder)
        return folder

    monkeypatch.setattr(equal_tokens, "MODULES", {})
    monkeypatch.setitem(equal_tokens.TRAINERS, "dictionary-learning", peer)
    monkeypatch.setitem(equal_tokens.DEFAULT_BATCHES, "dictionary-learning", 28)
    monkeypatch.setattr(equal_tokens, "load_language_model", lambda *_: lm)
    out, saes = tmp_path / "equal_tokens.json", tmp_path / "saes"

    def measure(**chosen: Any) -> list[dict[str, Any]]:
        who = (equal_tokens.OURS, "dictionary-learning")
        sizes = {"d_sae": 64, "k": 4, "tokens": (300,), "tries": 3}
        equal_tokens.measure(store.folder, store.folder, out=out, saes=saes, who=who, **sizes, **chosen)
        return read_json(out)["runs"]

    first = measure(kinds=("topk",))
    assert [(run["who"], run["recipe"], run["batch_tokens"], run["steps"]) for run in first] == [
        ("scansion", "default", 126, 3),
        ("dictionary-learning", "ours", 126, 3),
        ("dictionary-learning", "default", 28, 11),
    ]
    assert all(run["fve_without_outliers"] <= 1 and 0 < run["l0"] <= 4 and run["cpu_seconds"] >= 0 for run in first)
    large, small = read
    assert large.shape[1] == 54 and torch.equal(large[:, :44], small), "the same tokens in the same order"
    again = measure()
    assert again[:3] == first and len(read) > 2
    tried = [run["coefficient"] for run in again if run["kind"] == "relu" and run["who"] == equal_tokens.OURS]
    assert 1 <= len(tried) <= 3 and len(set(tried)) == len(tried)
    assert measure() == again
    equal_tokens.score(store.folder, out=out, saes=saes, loss_contexts=4)
    scored = read_json(out)["runs"]
    assert all(run["ce_loss_recovered"] <= 1.1 for run in scored if run["kind"] == "topk")
    text = drawn("equal_tokens", "equal_tokens.json")[1]
    assert text.count("| 300 | topk |") == 3 and text.count("| 300 | relu |") == 3
    assert "| 300 | topk | dictionary-learning | our rates |" in text


@pytest.mark.parametrize("exponent", [-0.5, -1.0, -2.0])
def test_a_few_trainings_find_the_coefficient_of_a_wanted_l0(exponent: float) -> None:
    key = {"kind": "relu", "who": equal_tokens.OURS, "recipe": "default", "tokens": 100, "seed": 0}
    runs: list[dict[str, Any]] = []
    while (coefficient := equal_tokens.next_coefficient(key, runs, 32, 5)) is not None:
        runs.append({**key, "coefficient": coefficient, "l0": 200 * (coefficient / 0.01) ** exponent})
    assert len(runs) < 5 and abs(runs[-1]["l0"] - 32) <= 3.2
    for other in ({"seed": 1}, {"tokens": 200}):
        assert equal_tokens.next_coefficient(key | other, runs, 32, 5) == runs[-1]["coefficient"]


def test_jumprelu_is_trained_at_every_coefficient_and_its_table_put_in_a_page(
    tmp_path: Path, lm_folder: Path, documents: Path
) -> None:
    corpus = {"source": str(documents), "context_length": 32, "max_tokens": 512, "held_out_tokens": 128}
    training = {"tokens": 512, "batch_tokens": 64, "device": "cpu"}
    runs = [{"name": "any", "sae": {"architecture": "relu", "d_sae": 8}}]
    plan = {"name": "tiny", "model": str(lm_folder), "hook_point": "layers.1", "corpus": corpus}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan | {"training": training, "runs": runs}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: jumprelu -->\n<!-- end -->\nafter\n")
    for _ in range(2):
        jumprelu.measure(out=tmp_path / "runs", into=page, plan=str(tmp_path / "plan.yaml"), d_sae=160)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert len(lines) == 4 + 2 + len(jumprelu.COEFFICIENTS) + 1
