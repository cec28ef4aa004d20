"""Object storage is contacted before anything expensive, what is wrong with it is said, and how to mend what is damaged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import yaml

from scansion.activations import ActivationStore
from scansion.activations.publishing import publish
from scansion.cli import evaluating
from scansion.errors import DamagedError
from scansion.mirroring import fetched
from scansion.pipeline import stores
from scansion.remote import Remote, local_copy
from scansion.training import loop
from tests.storage.conftest import change_object, names_in
from tests.study.conftest import settings_of
from tests.study.test_synthetic import PLAN as WORLDS

Move = Callable[[], None]


def _no_bucket(_: pytest.MonkeyPatch) -> str:
    return "s3://no-such-bucket"


def _no_credentials(patch: pytest.MonkeyPatch) -> str:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    patch.setenv("AWS_CONFIG_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    return "s3://bucket-there"


def _no_rights(patch: pytest.MonkeyPatch) -> str:
    call = s3fs.S3FileSystem._call_s3

    async def denied(self: Any, method: str, *arguments: Any, **settings: Any) -> Any:
        if method == "put_object":
            raise PermissionError("Access Denied")
        return await call(self, method, *arguments, **settings)

    patch.setattr(s3fs.S3FileSystem, "_call_s3", denied)
    boto3.client("s3").create_bucket(Bucket="read-only")
    return "s3://read-only"


def _no_server(patch: pytest.MonkeyPatch) -> str:
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    return "s3://bucket-there"


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], str], str]] = {
    "no bucket": (_no_bucket, "specified bucket does not exist; create the bucket, or correct the URL"),
    "no credentials": (_no_credentials, "Unable to locate credentials; give credentials as the storage's own tools"),
    "no rights": (_no_rights, "Access Denied; check the credentials and their rights"),
    "no server": (_no_server, "tried 5 times: Could not connect to the endpoint"),
}
OUTPUTS = {
    "harvest": "harvest --model {lm} --hook-point layers.1 --source {text} --context-length 16 --device cpu --out {url}/new",
    "train": "train stores/train --d-sae 32 --k 4 --out {url}/new",
    "eval": "eval plain --held-out stores/held_out --report {url}/new",
    "study": "study run tiny.yaml --out {url}/new",
    "demo": "demo --plan tiny.yaml --out {url}/new",
    "synth": "synth --plan worlds.yaml --out {url}/new",
}


@pytest.fixture
def workplace(
    run, bucket: str, lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder with stores, a run and plans."""
    monkeypatch.chdir(tmp_path)
    settings = settings_of(lm_folder, documents)
    settings |= {"evaluations": {"core": {"loss_contexts": 2}}, "runs": settings["runs"][:1]}
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))
    Path("worlds.yaml").write_text(yaml.safe_dump(WORLDS, sort_keys=False))
    assert run(*_harvest(lm_folder, documents, "stores"))[0] == 0
    assert run("train", "stores/train", "--d-sae", 32, "--k", 4, "--tokens", 0, "--out", "plain")[0] == 0
    return tmp_path


def _harvest(lm_folder: Path, documents: Path, out: str) -> list[object]:
    return [
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, "--context-length", 16,
        "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--shard-bytes", 8_000, "--out", out,
    ]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_output_is_contacted_before_anything_expensive(
    run, workplace: Path, lm_folder: Path, documents: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("the storage should have been contacted first")

    for where, name in (
        (stores, "load_tokenizer"), (stores, "model_facts"), (stores, "load_language_model"), (loop, "Session"),
        (evaluating, "evaluate"), (evaluating, "load_language_model"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, heavy)
    monkeypatch.setattr("scansion.synth.store.PlantedData", heavy)
    break_it, said = FAULTS[fault]
    url = break_it(monkeypatch)
    before = {path for path in workplace.rglob("*") if path.is_file()}
    for words in OUTPUTS.values():
        status, out, err = run(*words.format(lm=lm_folder, text=documents, url=url).split())
        err = " ".join(err.split())
        assert status == 2 and not out and said in err and f"{url}/new" in err, (words, err)
        assert {path for path in workplace.rglob("*") if path.is_file()} == before, words


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "no rights"])
@pytest.mark.parametrize("what", ["/texts", "/texts/*.jsonl", "/*.jsonl", ""])
def test_a_source_that_cannot_be_read_is_not_taken_for_an_empty_one(
    run, bucket: str, lm_folder: Path, tmp_path: Path, fault: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, said = FAULTS[fault]
    url = break_it(monkeypatch)
    status, _, err = run(*_harvest(lm_folder, Path(f"{url}{what}/"), str(tmp_path / "stores")))
    assert status == 2 and said in " ".join(err.split()), err
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "no rights"])
def test_a_store_is_contacted_first(run, workplace: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, said = FAULTS[fault]
    url = break_it(monkeypatch)
    for words in (
        f"train {url}/stores/train --d-sae 32 --k 4 --out new",
        f"eval plain --held-out {url}/stores/held_out --report new",
    ):
        status, _, err = run(*words.split())
        assert status == 2 and said in " ".join(err.split()), err
        assert not (workplace / "new").exists()


def test_a_finished_store_is_found_without_the_right_to_write(
    run, bucket: str, lm_folder: Path, documents: Path, elsewhere: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest = _harvest(lm_folder, documents, f"{bucket}/stores")
    assert run(*harvest)[0] == 0
    elsewhere()
    _no_rights(monkeypatch)
    status, out, err = run(*harvest)
    assert status == 0 and f"{bucket}/stores/train: " in out, err


def test_a_cluster_is_refused_before_the_storage_is_contacted(run, workplace: Path, requests) -> None:
    requests.clear()
    for words in (OUTPUTS["study"], OUTPUTS["harvest"]):
        status, _, err = run(*f"{words} --on local".format(lm="lm", text="text", url="s3://bucket-there").split())
        assert status == 2 and "a cluster writes to a disk that all its machines share" in " ".join(err.split())
    assert requests == []


def cut(contents: bytearray) -> None:
    del contents[len(contents) // 2 :]


def reword(contents: bytearray) -> None:
    contents[:] = contents.replace(b"resid_post", b"resid_pest").replace(b"d_sae", b"d_sea")


def flip(contents: bytearray) -> None:
    contents[-3] ^= 1


@pytest.mark.parametrize(
    ("file", "change", "how"),
    [
        ("manifest.json", cut, "run the harvest"),
        ("manifest.json", reword, "run the harvest"),
        ("manifest.json", lambda text: text.__setitem__(slice(None), b"{}"), "run the harvest"),
        ("shard-00001.safetensors", cut, "delete it there and run the harvest"),
        ("shard-00001.safetensors", flip, "delete it there and run the harvest"),
        (
            "shard-00001.safetensors",
            lambda contents: contents.__setitem__(20, 0),
            "delete it there and run the harvest",
        ),
        ("positions-00001.json", cut, "delete it there and run the harvest"),
        ("shard-00001.safetensors", None, "run the harvest"),
        ("positions-00001.json", None, "delete it there and run the harvest"),
    ],
)
def test_what_the_message_about_a_damaged_store_advises_mends_it(
    run,
    bucket: str,
    lm_folder: Path,
    documents: Path,
    elsewhere: Move,
    file: str,
    change: Any,
    how: str,
    tmp_path: Path,
) -> None:
    url = f"{bucket}/stores"
    harvest = _harvest(lm_folder, documents, url)
    assert run(*harvest)[0] == 0
    whole = ActivationStore(f"{url}/train")
    contents = whole.contents
    client, key = boto3.client("s3"), f"stores/train/{file}"
    if change is None:
        client.delete_object(Bucket=bucket.removeprefix("s3://"), Key=key)
    else:
        change_object(f"{url}/train/{file}", change)
    elsewhere()
    small = ("--d-sae", 32, "--k", 4, "--tokens", 1000, "--batch-tokens", 75)
    train = ("train", f"{url}/train", *small, "--out", tmp_path / "x")
    status, _, err = run(*train)
    said = " ".join(err.split())
    assert status == 2, err
    assert f"{url}/train/{file}" in said or f"{url}/train has no {file}" in said, said
    assert how in said and "doctor" not in said and "same command" not in said and str(tmp_path) not in said, said
    assert not (tmp_path / "x").exists()
    for move in (lambda: None, elsewhere):
        with pytest.raises(DamagedError) as refused:
            ActivationStore(f"{url}/train").verify()
        assert how in str(refused.value) and str(tmp_path) not in str(refused.value)
        move()
    if "delete it there" in said:
        client.delete_object(Bucket=bucket.removeprefix("s3://"), Key=key)
    status, _, err = run(*harvest)
    assert status == 0, err
    elsewhere()
    mended = ActivationStore(f"{url}/train")
    mended.verify()
    assert mended.contents == contents
    assert run(*train)[0] == 0


def test_a_damaged_run_is_named_by_its_url_and_made_again_once_it_is_deleted_there(
    run, store, bucket: str, elsewhere: Move, tmp_path: Path
) -> None:
    publish(store, f"{bucket}/train")
    url = f"{bucket}/runs/one"
    train = ("train", f"{bucket}/train", "--d-sae", 32, "--k", 4, "--tokens", 1000, "--batch-tokens", 64, "--out", url)
    assert run(*train)[0] == 0
    evaluate = ("eval", url, "--held-out", f"{bucket}/train", "--evaluations", "core", "--device", "cpu")
    for file, change, command in (
        ("config.yaml", reword, train),
        ("sae/cfg.json", cut, evaluate),
        ("sae/sae_weights.safetensors", cut, evaluate),
    ):
        change_object(f"{url}/{file}", change)
        status, _, err = run(*command)
        said = " ".join(err.split())
        assert status == 2 and f"error: {url}/{file} " in said, said
        assert f"if only the copy in the cache is damaged, delete that: {local_copy(url) / file}" in said, said
        remote = Remote(url)
        remote.delete(remote.files())
        status, _, err = run(*train)  # with the cache as it was
        assert status == 0 and "already trained" not in err, err
        assert {"config.yaml", "sae/cfg.json", "sae/sae_weights.safetensors"} <= names_in(url)
        assert re.search("trained", run(*train)[2])


def test_what_was_deleted_there_is_deleted_here_unless_it_was_changed_here(bucket: str, store) -> None:
    url = f"{bucket}/runs/one"
    remote, folder = Remote(url), local_copy(url)
    for name in ("notes.txt", "evals/core.json", "evals/position.json", "sae/cfg.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        remote.upload(folder / name, name)
    fetched(url)
    (folder / "evals/core.json").write_text("changed here")
    (folder / "evals/own.json").write_text("never sent")
    remote.delete(["evals/core.json", "evals/position.json", "sae/cfg.json"])
    fetched(url)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith(".")}
    assert left == {"notes.txt", "evals", "evals/core.json", "evals/own.json"}
