"""A server that speaks S3 on loopback, and what was asked of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from scansion import remote

_numbers = itertools.count()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty bucket, read by this process with standard variables and a cache of the test's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{next(_numbers)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Call it to go on as another machine, with an empty cache."""

    def move() -> None:
        monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / f"cache-{next(_numbers)}"))

    return move


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Method, object and bytes asked for (-1 for all of it) of each request."""
    asked: list[tuple[str, str, int]] = []
    call = s3fs.S3FileSystem._call_s3

    async def record(self: Any, method: str, *arguments: Any, **settings: Any) -> Any:
        start, _, last = settings.get("Range", "").removeprefix("bytes=").partition("-")
        asked.append((method, settings.get("Key", ""), int(last) - int(start) + 1 if last else -1))
        return await call(self, method, *arguments, **settings)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", record)
    return asked


def change_object(url: str, change: Callable[[bytearray], object]) -> None:
    """Replace an object by what ``change`` makes of it."""
    bucket, key = url.removeprefix("s3://").split("/", 1)
    client = boto3.client("s3")
    contents = bytearray(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    change(contents)
    client.put_object(Bucket=bucket, Key=key, Body=bytes(contents))


def names_in(url: str) -> set[str]:
    """The names of the objects under a URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {each["Key"].removeprefix(f"{prefix}/") for each in found.get("Contents", [])}
