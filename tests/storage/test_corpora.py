"""Text on object storage is read as local files are, fetched once, and fetched again when it has changed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import boto3
import pytest

from scansion.corpus import CorpusConfig, check_source, load_contexts
from scansion.corpus.sources import read_documents
from scansion.errors import CorpusError, ScansionError
from tests.storage.conftest import change_object


@pytest.fixture
def texts(bucket: str, tmp_path: Path) -> str:
    """Four files in a folder of the bucket, one of them compressed, and one that is no text."""
    files = {f"part-{part}.jsonl": [f"w{part + 3} w{word}" for word in range(3, 50)] for part in range(3)}
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    for file, words in files.items():
        lines = "".join(json.dumps({"text": f"{word} " * 20}) + "\n" for word in words).encode()
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / file).write_bytes(lines)
        client.put_object(Bucket=name, Key=f"texts/{file}", Body=lines)
    packed = gzip.compress(b'{"text": "w9 w9 w9"}\n')
    (tmp_path / "texts" / "z.jsonl.gz").write_bytes(packed)
    client.put_object(Bucket=name, Key="texts/z.jsonl.gz", Body=packed)
    client.put_object(Bucket=name, Key="texts/picture.png", Body=b"\0")
    return f"{bucket}/texts"


def downloads(requests: list[tuple[str, str, int]]) -> list[str]:
    return [key.rsplit("/")[-1] for method, key, _ in requests if method == "get_object"]


@pytest.mark.parametrize("what", ["", "/*.jsonl", "/part-1.jsonl", "/**/*.gz"])
def test_a_url_is_read_as_the_same_place_on_disk(texts: str, tmp_path: Path, what: str) -> None:
    there, here = CorpusConfig(source=texts + what), CorpusConfig(source=f"{tmp_path}/texts{what}")
    check_source(there)
    documents = list(read_documents(there))
    assert documents == list(read_documents(here)) and documents


def test_contexts_follow_the_contents_and_only_what_changed_is_fetched(
    texts: str, tokenizer, tmp_path, requests
) -> None:
    def contexts(source: str) -> str:
        config = CorpusConfig(source=source, context_length=8, held_out_tokens=64)
        return load_contexts(config, tokenizer).train.fingerprint

    requests.clear()
    first = contexts(texts)
    assert first == contexts(f"{tmp_path}/texts")
    assert sorted(set(downloads(requests))) == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl", "z.jsonl.gz"]
    requests.clear()
    assert contexts(texts) == first and not downloads(requests)
    change_object(f"{texts}/part-1.jsonl", lambda body: body.__setitem__(slice(0, 20), b'{"text": "w44 w44 w4'))
    assert contexts(texts) != first and set(downloads(requests)) == {"part-1.jsonl"}
    boto3.client("s3").delete_object(Bucket=texts.split("/")[2], Key="texts/part-1.jsonl")
    (tmp_path / "texts" / "part-1.jsonl").unlink()
    assert contexts(texts) == contexts(f"{tmp_path}/texts")


def test_a_url_of_nothing_is_one_line(texts: str) -> None:
    for source, said in (
        (f"{texts}/*.parquet", "no file matches"),
        (f"{texts}s", "has no file whose name ends in"),
        (f"{texts}/picture.png", "of an unknown kind"),
        ("s3://no-such-bucket/x", "create the bucket"),
    ):
        with pytest.raises((CorpusError, ScansionError), match=said):
            check_source(CorpusConfig(source=source))
