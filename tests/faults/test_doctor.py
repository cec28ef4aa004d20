"""``scansion doctor FOLDER`` names every damaged file, and ``--repair`` computes only damaged shards again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scansion.activations import ActivationStore
from tests.faults.workspace import Workspace, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("doctor") / "whole")


@pytest.fixture
def copy(workspace: Workspace, tmp_path: Path) -> Workspace:
    return workspace.copy(tmp_path / "copy")


@pytest.fixture
def text(documents: Path, tmp_path: Path) -> Path:
    """A copy of the documents, which a test may change."""
    return Path(shutil.copy(documents, tmp_path / "text.jsonl"))


@pytest.fixture
def store(run, lm_folder: Path, text: Path, tmp_path: Path) -> Path:
    """A store of several shards, harvested from a text file."""
    status, _, err = run(
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", text, "--context-length", 16,
        "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--out", tmp_path / "stores",
        "--shard-bytes", 8_000,
    )  # fmt: skip
    assert status == 0, err
    return tmp_path / "stores" / "train"


def shards(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(folder.glob("shard-*"))}


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


def test_a_whole_workspace_is_fine(run, workspace: Workspace) -> None:
    status, out, err = run("doctor", workspace.home)
    assert status == 0, err
    assert out.startswith("all ") and out.endswith(" files are what was written\n")


@pytest.mark.parametrize(
    "name",
    [
        "store/manifest.json",
        "store/plan.json",
        "store/norms.safetensors",
        "store/shard-00000.safetensors",
        "killed/config.yaml",
        "killed/metrics.jsonl",
        "study/run_0/plan.json",
        "study/run_0/final_info.json",
        "study/run_1/seed_0/sae/cfg.json",
        "study/run_1/seed_0/sae/sae_weights.safetensors",
        "study/run_1/seed_0/evals/core.json",
        "study/run_1/seed_0/evals/position_profile.safetensors",
        "killed/checkpoints/*/state.json",
        "killed/checkpoints/*/*.safetensors",
    ],
)
def test_each_kind_of_damaged_file_is_named(run, copy: Workspace, name: str) -> None:
    file = next(copy.home.glob(name))
    text = file.suffix != ".safetensors"
    file.write_bytes(file.read_bytes().replace(b"1", b"2") if text else file.read_bytes()[:-1])
    status, out, err = run("doctor", copy.home)
    assert status == 2 and "files in" in err and "damaged or missing" in err
    assert str(file.relative_to(copy.home)) in out.replace("\n", "")


def test_only_the_damaged_shard_of_a_store_is_computed_again(run, store: Path) -> None:
    before = shards(store)
    assert len(before) > 2
    damage(store / "shard-00001.safetensors")
    status, out, err = run("doctor", store)
    assert status == 2 and "shard-00001.safetensors" in out and "1 of" in err
    status, out, err = run("doctor", store, "--repair", "--device", "cpu")
    assert status == 0, err
    assert "shard-00001.safetensors" in err and "all " in out
    after = shards(store)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    assert [name for name in before if before[name] != after[name]] == ["shard-00001.safetensors"]


def test_a_store_with_a_damaged_manifest_is_repaired_without_harvesting(run, store: Path) -> None:
    before = shards(store)
    manifest = store / "manifest.json"
    right = json.loads(manifest.read_text())
    manifest.write_text("{")
    status, out, _ = run("doctor", store)
    assert status == 2 and str(manifest) in out.replace("\n", "")
    status, _, err = run("doctor", store, "--repair", "--device", "cpu")
    assert status == 0, err
    assert json.loads(manifest.read_text()) == right and shards(store) == before


def test_a_store_without_manifest_and_plan_cannot_be_repaired(run, store: Path) -> None:
    for name in ("manifest.json", "plan.json"):
        (store / name).write_text("{")
    status, _, err = run("doctor", store, "--repair", "--device", "cpu")
    assert status == 2 and "neither a readable manifest.json nor a readable plan.json" in err


def test_a_store_whose_text_is_gone_or_has_changed_says_so(run, store: Path, text: Path) -> None:
    damage(store / "shard-00001.safetensors")
    lines = text.read_text().splitlines(keepends=True)
    text.unlink()
    status, _, err = run("doctor", store, "--repair", "--device", "cpu")
    assert status == 2 and str(text) in err and len(err.strip().splitlines()) == 1, err
    text.write_text("".join(reversed(lines)))
    status, _, err = run("doctor", store, "--repair", "--device", "cpu")
    assert status == 2 and "cannot be repaired: text or model have changed (contexts is" in err
    text.write_text("".join(lines))
    assert run("doctor", store, "--repair", "--device", "cpu")[0] == 0


def test_a_planted_store_is_planted_again(run, copy: Workspace) -> None:
    right = ActivationStore(copy.store).contexts(0, 100).x.clone()
    damage(copy.store / "shard-00000.safetensors")
    status, _, err = run("doctor", copy.store, "--repair")
    assert status == 0, err
    assert ActivationStore(copy.store).contexts(0, 100).x.equal(right)


def test_folders_that_hold_nothing_of_ours(run, tmp_path: Path, copy: Workspace) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("nothing")
    status, _, err = run("doctor", tmp_path / "other")
    assert status == 2 and "holds no store, run or study" in err
    status, _, err = run("doctor", tmp_path / "absent")
    assert status == 2 and "no such folder" in err
    status, _, err = run("doctor", copy.study, "--repair")
    assert status == 2 and "only stores can be repaired" in err
    status, _, err = run("doctor", "--repair")
    assert status == 2 and "--repair needs the folder of a store" in err


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("killed/config.yaml", "killed/config.yaml is missing: without it the run cannot be resumed"),
        ("killed/checkpoints/step-000000024/state.json", "state.json is missing: delete"),
        ("study/run_0/final_info.json", "run_0/final_info.json is missing: run the study again"),
        (
            "study/run_0/seed_0/sae",
            "sae/sae_weights.safetensors is missing: final_info.json has figures of plain, seed 0",
        ),
        ("study/run_0/seed_0/sae/sae_weights.safetensors", "run_0/seed_0/sae/sae_weights.safetensors is missing"),
        ("study/run_0/seed_0/sae/cfg.json", "run_0/seed_0/sae/cfg.json is missing: the SAE of this run was saved"),
        ("study/run_0/seed_0/metrics.jsonl", "metrics.jsonl is missing: the SAE of this run was trained"),
        ("study/run_0/seed_0/evals/core.json", "core.json is missing: final_info.json has figures of plain"),
        ("study/run_0/seed_0/evals/position_profile.safetensors", "safetensors is missing: delete position.json"),
        ("study/run_1/seed_0", "run_1/seed_0/config.yaml is missing: final_info.json has figures of hard, seed 0"),
    ],
)
def test_files_that_must_be_there_are_missed(run, copy: Workspace, gone: str, named: str) -> None:
    path = copy.home / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, out, err = run("doctor", copy.home)
    assert status == 2 and err.strip().endswith("damaged or missing")
    text = " ".join(out.split())
    assert named in text, out
    assert text.count(f"{path} is missing") <= 1


def test_a_run_whose_sae_was_deleted_is_missed_without_a_study(run, copy: Workspace) -> None:
    folder = copy.study / "run_0" / "seed_0"
    shutil.rmtree(folder / "sae")
    shutil.rmtree(folder / "evals")
    status, out, _ = run("doctor", folder)
    assert status == 2 and "sae/cfg.json is missing: training had ended" in " ".join(out.split())


def test_files_without_a_checksum_are_named_and_are_no_damage(run, copy: Workspace) -> None:
    folder = copy.study / "run_0" / "seed_0"
    settings = [line for line in (folder / "config.yaml").read_text().splitlines() if not line.startswith("checksum")]
    (folder / "config.yaml").write_text("\n".join(settings))
    core = json.loads((folder / "evals" / "core.json").read_text())
    del core["checksum"]
    (folder / "evals" / "core.json").write_text(json.dumps(core))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    plain = [json.dumps({k: v for k, v in json.loads(line).items() if k != "checksum"}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(plain) + "\n")
    status, out, err = run("doctor", copy.home)
    text = " ".join(out.split())
    assert status == 0, err
    for name in ("config.yaml", "evals/core.json", "metrics.jsonl"):
        assert f"{folder / name} has no checksum" in text
    assert text.count("has no checksum") == 3 and "but for the 3 without a checksum" in text


def test_a_study_of_an_earlier_version_is_whole_and_unchecked(run) -> None:
    status, out, err = run("doctor", Path(__file__).parents[1] / "fixtures" / "first_house" / "study")
    assert status == 0, err
    assert "has no checksum" in out
