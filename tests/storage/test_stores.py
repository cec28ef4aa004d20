"""A store on object storage is read by positions, gives the bytes it would give from disk, and is never read damaged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
import s3fs
import torch

from scansion.activations import ActivationStore, ActivationStream
from scansion.activations.publishing import publish
from scansion.errors import ConfigError, DamagedError, ScansionError, StoreError
from scansion.remote import Remote, local_copy, origin, url_of
from scansion.sae import TopKConfig
from scansion.training import TrainingConfig, TrainingRun, train
from tests.storage.conftest import change_object, names_in

Move = Callable[[], None]
Requests = list[tuple[str, str, int]]


def test_a_url_survives_being_a_path_and_has_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path))
    for url in ("s3://bucket/stores/sotu", "memory://runs/one", f"file://{tmp_path}/x"):
        assert url_of(url) == url_of(Path(url)) == url_of(f"{url}/") == url
        assert origin(local_copy(url)) == url
    assert (
        url_of("stores/sotu")
        is url_of("hub:owner/name")
        is url_of("/data/a:b/c")
        is origin(tmp_path / "stores")
        is None
    )
    assert url_of("S3://Bucket/stores") == "s3://Bucket/stores"
    with pytest.raises(ConfigError, match="leave out the parts"):
        url_of("s3://bucket/../other")
    with pytest.raises(ConfigError, match="s3:// names no place"):
        url_of("s3://")


def test_training_from_a_url_gives_the_bytes_of_training_from_disk(store, bucket, elsewhere: Move, tmp_path) -> None:
    url = f"{bucket}/stores/train"
    publish(store, url)
    elsewhere()
    there = ActivationStore(url)
    assert torch.equal(there.contexts(0, 60).x, store.contexts(0, 60).x)
    assert torch.equal(there.tokens, store.tokens) and torch.equal(there.sums, store.sums)
    config, settings = TopKConfig(d_sae=32, k=4), TrainingConfig(tokens=3_000, batch_tokens=64, device="cpu")
    for name, source in (("disk", store), ("url", there)):
        train([TrainingRun("one", tmp_path / name, config, settings)], source)
    weights = "sae/sae_weights.safetensors"
    assert (tmp_path / "url" / weights).read_bytes() == (tmp_path / "disk" / weights).read_bytes()


@pytest.mark.parametrize("in_memory", [True, False])
def test_only_the_positions_that_are_trained_on_are_read(
    store, bucket, elsewhere: Move, requests: Requests, in_memory: bool
) -> None:
    publish(store, f"{bucket}/train")
    elsewhere()
    requests.clear()
    there = ActivationStore(f"{bucket}/train")
    stream = ActivationStream(there, 4, seed=0, in_memory=in_memory, part=slice(2, 5))  # positions 3, 4 and 5
    expected = ActivationStream(store, 4, seed=0, part=slice(2, 5))
    for step in range(40):
        assert torch.equal(stream.batch(step).x, expected.batch(step).x)
    assert stream.input_scale == expected.input_scale
    asked = sum(size for method, key, size in requests if method == "get_object" and "shard-" in key)
    assert -1 not in [size for method, key, size in requests if method == "get_object" and "shard-" in key]
    of_position = 60 * store.d_in * 4
    rest = sum(shard.extent()[2] - (shard.extent()[1] - shard.extent()[0]) for shard in store.shards)
    assert asked == 3 * of_position + rest

    requests.clear()  # all of it is in the cache now
    again = ActivationStore(f"{bucket}/train")
    assert torch.equal(ActivationStream(again, 4, seed=0, part=slice(2, 5)).batch(7).x, expected.batch(7).x)
    assert not [key for method, key, _ in requests if method == "get_object" and "shard-" in key]


def test_a_byte_that_changed_in_storage_is_named(store, bucket, elsewhere: Move) -> None:
    url = f"{bucket}/train"
    publish(store, url)
    begin, end, _ = store.shards[1].extent()
    at = begin + 5 * (end - begin) // 8 + 3  # of position 5
    change_object(f"{url}/shard-00001.safetensors", lambda contents: contents.__setitem__(at, contents[at] ^ 1))
    elsewhere()
    there = ActivationStore(url)
    stream = ActivationStream(there, 4, seed=0, part=slice(0, 4), in_memory=True)  # positions 1 to 4 are whole
    assert torch.equal(stream.batch(0).x, ActivationStream(store, 4, seed=0, part=slice(0, 4)).batch(0).x)
    for read in (lambda: there.contexts(0, 60), there.verify):
        with pytest.raises(DamagedError, match=rf"{url}/shard-00001.safetensors is damaged at position 5"):
            read()


@pytest.mark.parametrize("file", ["shard-00001.safetensors", "positions-00001.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_whatever_is_wrong_in_storage_is_one_line_that_names_it(store, bucket, elsewhere: Move, file, how) -> None:
    url = f"{bucket}/train"
    publish(store, url)
    if how == "gone":
        Remote(url).delete([file])
    else:
        change_object(
            f"{url}/{file}",
            (lambda contents: contents.__delitem__(slice(-20, None)))
            if how == "cut"
            else (lambda contents: contents.__setitem__(slice(200, 204), b"0000")),
        )
    elsewhere()
    with pytest.raises(ScansionError) as raised:
        ActivationStore(url).contexts(0, 60)
    said = str(raised.value)
    assert url in said and "\n" not in said
    assert file in said or (how == "gone" and file == "manifest.json")


def test_what_is_damaged_in_the_cache_is_read_again(store, bucket, elsewhere: Move, capsys) -> None:
    publish(store, f"{bucket}/train")
    elsewhere()
    first = ActivationStore(f"{bucket}/train")
    expected = first.contexts(0, 60).x
    (part,) = first.derived.glob("shard-00000.safetensors")
    contents = bytearray(part.read_bytes())
    contents[len(contents) // 2] ^= 1
    part.write_bytes(contents)
    (first.derived / "shard-00001.safetensors").unlink()
    assert torch.equal(ActivationStore(f"{bucket}/train").contexts(0, 60).x, expected)
    assert "reading it again" in capsys.readouterr().err


def test_an_interrupted_upload_is_resumed_and_not_found_before(store, bucket, requests: Requests, monkeypatch) -> None:
    url = f"{bucket}/train"
    upload = Remote.upload

    def interrupted(self: Remote, path: Path, name: str) -> object:
        if name == "shard-00002.safetensors":
            raise KeyboardInterrupt
        return upload(self, path, name)

    monkeypatch.setattr(Remote, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(store, url)
    with pytest.raises(StoreError, match="unfinished store"):
        ActivationStore(url)
    monkeypatch.setattr(Remote, "upload", upload)
    requests.clear()
    publish(store, url)
    sent = {key.rsplit("/")[-1] for method, key, _ in requests if method == "put_object"}
    assert "shard-00002.safetensors" in sent and not sent & {"shard-00000.safetensors", "shard-00001.safetensors"}
    assert [key for method, key, _ in requests if method == "put_object"][-1].endswith("manifest.json")


def test_a_dropped_connection_is_tried_again_and_then_one_line(store, bucket, elsewhere: Move, monkeypatch) -> None:
    publish(store, f"{bucket}/train")
    elsewhere()
    read, failures = s3fs.S3FileSystem._cat_file, [0]

    async def drop(self: object, *arguments: object, **settings: object) -> bytes:
        failures[0] -= 1
        if failures[0] > 2:
            raise ConnectionResetError("the connection was reset")
        contents: bytes = await read(self, *arguments, **settings)
        is_cut_off = failures[0] > 0 and settings.get("start") is not None
        return contents[: len(contents) // 2] if is_cut_off else contents

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", drop)
    s3fs.S3FileSystem.clear_instance_cache()
    there = ActivationStore(f"{bucket}/train")
    failures[0] = 6  # one request after the other
    there.verify_share(0, 1)
    failures[0] = 5  # the two of the rest of a shard at once
    assert torch.equal(there.contexts(0, 60).x, store.contexts(0, 60).x)
    failures[0] = 1_000
    with pytest.raises(
        ScansionError, match=rf"cannot read {bucket}/train/manifest.json, tried 5 times: the connection was"
    ):
        ActivationStore(f"{bucket}/train")


def test_no_server_no_bucket_and_no_such_storage_are_one_line_each(store, bucket, monkeypatch) -> None:
    with pytest.raises(ScansionError, match=r"cannot list s3://no-such-bucket/x: .*create the bucket"):
        publish(store, "s3://no-such-bucket/x")
    with pytest.raises(ScansionError, match="create the bucket"):
        ActivationStore("s3://no-such-bucket/x")
    with pytest.raises(ConfigError, match="nowhere://x/y cannot be read: Protocol not known"):
        ActivationStore("nowhere://x/y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ScansionError, match=r"cannot list s3://bucket/x, tried 5 times: .*127.0.0.1:9"):
        ActivationStore("s3://bucket/x")


def test_a_client_that_is_not_installed_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'scansion\[s3\]'"):
        ActivationStore("s3://bucket/x")


def test_other_kinds_of_storage_are_read_alike(store, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    for url in (f"file://{tmp_path}/bucket/train", "memory://bucket/train"):
        publish(store, url)
        assert torch.equal(ActivationStore(url).contexts(20, 60).x, store.contexts(20, 60).x)
        assert "parts-" in str(ActivationStore(url).derived)


def test_readers_that_share_a_cache_read_the_same(store, bucket, elsewhere: Move) -> None:
    publish(store, f"{bucket}/train")
    elsewhere()
    readers = [ActivationStore(f"{bucket}/train") for _ in range(4)]  # each as another process would be
    with ThreadPoolExecutor() as threads:
        for read in threads.map(lambda reader: reader.contexts(0, 60).x, readers):
            assert torch.equal(read, store.contexts(0, 60).x)


def test_harvest_to_a_url(run, lm_folder, documents, bucket, elsewhere: Move, requests: Requests, tmp_path) -> None:
    def harvest(out: object) -> str:
        status, said, err = run(
            "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, "--context-length", 16,
            "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--shard-bytes", 8_000, "--out", out,
        )  # fmt: skip
        assert status == 0, err
        assert str(local_copy(f"{bucket}/stores")) not in err
        return said

    harvest(tmp_path / "disk")
    assert f"{bucket}/stores/train: " in harvest(f"{bucket}/stores")
    stored = {path.name for path in (tmp_path / "disk" / "train").glob("shard-*")}
    assert stored | {"manifest.json", "norms.safetensors"} <= names_in(f"{bucket}/stores/train")

    elsewhere()  # the finished store is found, and nothing is harvested
    requests.clear()
    harvest(f"{bucket}/stores")
    assert not [key for method, key, _ in requests if method == "put_object"]

    elsewhere()  # an upload that was interrupted: its shards are fetched, the missing one is computed
    Remote(f"{bucket}/stores/train").delete(["manifest.json", "shard-00001.safetensors"])
    requests.clear()
    harvest(f"{bucket}/stores")
    sent = {key.rsplit("/")[-1] for method, key, _ in requests if method == "put_object" and "shard" in key}
    assert sent == {"shard-00001.safetensors"}
    for name in stored:
        at = local_copy(f"{bucket}/stores/train") / name
        assert at.read_bytes() == (tmp_path / "disk" / "train" / name).read_bytes()

    elsewhere()
    status, _, err = run(
        "train", f"{bucket}/stores/train", "--out", tmp_path / "run", "--tokens", 2_000, "--d-sae", 32, "--k", 4,
        "--batch-tokens", 64, "--device", "cpu",
    )  # fmt: skip
    assert status == 0, err
    shutil.rmtree(local_copy(f"{bucket}/stores"))
    status, _, err = run("eval", tmp_path / "run", "--held-out", f"{bucket}/stores/held_out", "--evaluations", "core")
    assert status == 0, err
