"""A store whose files are not what was harvested is never trained on, and only its damaged shards are computed again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore, ActivationStream, harvest
from scansion.activations.shard import ShardBuffer, written_digest
from scansion.activations.store import StoreIdentity
from scansion.errors import DamagedError, StoreError
from scansion.lm import LanguageModel
from scansion.records import SEAL, write_json
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from tests.conftest import make_lm, make_plan, random_contexts
from tests.faults.workspace import WORLD

CONTEXTS = random_contexts(40, seed=3)


def made(folder: Path, lm: LanguageModel) -> ActivationStore:
    return harvest(make_plan(folder, CONTEXTS, shard_bytes=8 * 8 * 16 * 4), lambda: lm)


def read_all(folder: Path) -> torch.Tensor:
    """As training does: statistics first, then batches."""
    return ActivationStream(ActivationStore(folder), per_position=4, seed=0).batch(0).x


def flip(name: str, offset: int) -> Callable[[Path], None]:
    """Flip a bit of one tensor of the second shard."""

    def damage(folder: Path) -> None:
        path = folder / "shard-00001.safetensors"
        data = bytearray(path.read_bytes())
        size = int.from_bytes(data[:8], "little")
        start = json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
        data[8 + size + start + offset] ^= 1
        path.write_bytes(data)

    return damage


def change_header(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "shard-00001.safetensors"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return damage


def zero_4kb(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(min(4096, len(data) - 4096))
    path.write_bytes(data)


def swap_shards(folder: Path) -> None:
    first, second = folder / "shard-00000.safetensors", folder / "shard-00001.safetensors"
    here, there = first.read_bytes(), second.read_bytes()
    first.write_bytes(there)
    second.write_bytes(here)


def edit_manifest(change: Callable[[dict], object], sealed: bool = True) -> Callable[[Path], None]:
    """Edit the manifest. Sealed again, so that its own contradictions, and not its checksum, must be noticed."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        if sealed:
            del manifest[SEAL]
        change(manifest)
        write_json(folder / "manifest.json", manifest, sealed=sealed)

    return damage


def foreign_shard(folder: Path) -> None:
    other = folder.parent / "other"
    plan = make_plan(other, random_contexts(40, seed=4), shard_bytes=8 * 8 * 16 * 4)
    harvest(plan, make_lm)
    shutil.copy(other / "shard-00001.safetensors", folder / "shard-00001.safetensors")


SHARD_DAMAGES: dict[str, Callable[[Path], None]] = {
    "activation": flip("acts", 77),
    "validity": flip("valid", 3),
    "count": flip("count", 0),
    "sum": flip("act_sum", 9),
    "token": flip("tokens", 5),
    "document id": flip("doc_ids", 4),
    "zeros": zero_4kb,
    "type": change_header(b'"F32"', b'"I32"'),
    "shape": change_header(b'"shape":[8,8,16]', b'"shape":[8,16,8]'),
    "length of the header": change_header(b"\x00\x00\x00\x00\x00\x00{", b"\x00\x00\x00\x00\x00\x7f{"),
    "foreign shard": foreign_shard,
    "swapped": swap_shards,
    "missing": lambda folder: (folder / "shard-00001.safetensors").unlink(),
    "empty": lambda folder: (folder / "shard-00000.safetensors").write_bytes(b""),
}
MANIFEST_DAMAGES: dict[str, Callable[[Path], None]] = {
    "not UTF-8": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{}"),
    "not JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "nested": lambda folder: (folder / "manifest.json").write_text("[" * 200_000),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "edited": edit_manifest(lambda manifest: manifest.update(n_tokens=5), sealed=False),
    "tokens": edit_manifest(lambda manifest: manifest.update(n_tokens=5)),
    "identity": edit_manifest(lambda manifest: manifest["identity"].update(hook_point="resid_post.2")),
    "dropped shard": edit_manifest(lambda manifest: manifest["shards"].pop("shard-00004.safetensors")),
    "dropped in the middle": edit_manifest(lambda manifest: manifest["shards"].pop("shard-00001.safetensors")),
    "no shards": edit_manifest(lambda manifest: manifest.update(shards={})),
    "a path": edit_manifest(lambda manifest: manifest.update(shards={"../../x": "0" * 32})),
}


@pytest.mark.parametrize("damage", [*SHARD_DAMAGES, *MANIFEST_DAMAGES])
def test_damage_is_found_when_the_store_is_read_and_mended_by_the_same_harvest(damage: str, tmp_path: Path, lm) -> None:
    folder = tmp_path / "store"
    whole = made(folder, lm)
    right = whole.contexts(0, 40).x.clone()
    ({**SHARD_DAMAGES, **MANIFEST_DAMAGES}[damage])(folder)
    with pytest.raises(DamagedError, match=r"shard-0000\d\.safetensors|manifest\.json"):
        read_all(folder)
    again = made(folder, lm)
    assert torch.equal(again.contexts(0, 40).x, right)
    assert again.damaged() == []


def test_only_the_damaged_shards_are_computed_again(tmp_path: Path, lm, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "store"
    made(folder, lm)
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*")}
    SHARD_DAMAGES["activation"](folder)
    made(folder, lm)
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*")}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["shard-00001.safetensors"]
    assert "shard-00001.safetensors is damaged: its contents do not match their digest; computing it again" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_a_resumed_harvest_does_not_keep_a_damaged_shard(damage: str, tmp_path: Path, lm) -> None:
    folder = tmp_path / "store"
    right = made(folder, lm).contexts(0, 40).x.clone()
    (folder / "manifest.json").unlink()
    (folder / "shard-00004.safetensors").unlink()
    SHARD_DAMAGES[damage](folder)
    again = made(folder, lm)
    assert torch.equal(again.contexts(0, 40).x, right)
    assert again.damaged() == []


def test_a_planted_store_is_mended_too(tmp_path: Path) -> None:
    world = PlantedDictionary.plant(SynthConfig.model_validate(WORLD))
    right = plant_store(world, "train", tmp_path / "store").contexts(0, 1600).x.clone()
    path = tmp_path / "store" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(plant_store(world, "train", tmp_path / "store").contexts(0, 1600).x, right)


def test_a_folder_of_stores_says_which_stores_it_holds(tmp_path: Path, lm) -> None:
    made(tmp_path / "stores" / "train", lm)
    with pytest.raises(StoreError, match="it holds the stores train; give one of them"):
        ActivationStore(tmp_path / "stores")


def many_shards(folder: Path, n: int) -> None:
    """A store of ``n`` shards of one context each, all with the same bytes on disk."""
    buffer = ShardBuffer.empty(2, 1, 4, "bfloat16")
    buffer.valid.fill_(True)
    buffer.acts.fill_(1.0)
    identity = StoreIdentity(
        model="m", model_revision="r", model_dtype="float32", hook_point="resid_post.0", d_in=4, context_length=2,
        n_contexts=n, contexts="c", corpus={}, split="train", dtype="bfloat16",
    )  # fmt: skip
    folder.mkdir()
    buffer.write(folder / "shard-00000.safetensors", "")
    for index in range(1, n):
        os.link(folder / "shard-00000.safetensors", folder / f"shard-{index:05d}.safetensors")
    digest = written_digest(folder / "shard-00000.safetensors")
    write_json(
        folder / "manifest.json",
        {
            "identity": identity.model_dump(mode="json"), "key": identity.key, "n_tokens": 2 * n,
            "shards": {f"shard-{index:05d}.safetensors": digest for index in range(n)},
        },
    )  # fmt: skip


def test_ten_thousand_shards_open_quickly_with_few_handles(tmp_path: Path) -> None:
    many_shards(tmp_path / "store", 10_000)
    script = (
        "import os, time, resource, sys\n"
        "from pathlib import Path\n"
        "from scansion.activations import ActivationStore, ActivationStream\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "start = time.process_time()\n"
        "store = ActivationStore(Path(sys.argv[1]))\n"
        "seconds = time.process_time() - start\n"
        "ActivationStream(store, per_position=4096, seed=0, in_memory=False).batch(0)\n"
        "print(seconds, len(os.listdir('/proc/self/fd')) - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    seconds, handles = run.stdout.split()
    assert float(seconds) < 2 and int(handles) < 64
