"""Every parser of text or bytes that others wrote: it returns, or raises an error of ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from scansion.activations.shard import Shard, ShardFacts, n_contexts_in, written_digest
from scansion.activations.store import StoreManifest
from scansion.corpus.local import reader_of
from scansion.errors import DamagedError, ScansionError
from scansion.lm import HookPoint
from scansion.lm.gguf import read_header
from scansion.masks import build_mask
from scansion.records import parse_json, parse_yaml, read_json, read_json_lines, read_yaml, unsealed_values
from scansion.sae import parse_sae_config
from scansion.study import StudyPlan
from scansion.tensor_file import load_tensors

FOLDER = Path(tempfile.mkdtemp(prefix="scansion-fuzz-"))


def file_of(data: bytes, name: str) -> Path:
    """A file with these bytes."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


def mask(data: bytes) -> None:
    """``--mask``, and the mask itself for small sizes."""
    from scansion.flags import parse_mask

    build_mask(parse_mask(data.decode("utf-8", "replace")), 8, 16)


def plan(data: bytes) -> None:
    """A study's plan."""
    StudyPlan.model_validate(parse_yaml(data, "plan"))


def settings(data: bytes) -> None:
    """``--settings``."""
    from scansion.cli.evaluating import parse_evaluations

    parse_evaluations("core,sparse_probing,position", data.decode("utf-8", "replace"))


def records(data: bytes) -> None:
    """JSON and YAML files of ours."""
    for read, name in ((read_json, "a.json"), (read_yaml, "a.yaml"), (read_json_lines, "a.jsonl")):
        try:
            read(file_of(data, name))
        except ScansionError:
            continue


def manifest(data: bytes) -> None:
    """The manifest of a store."""
    StoreManifest.model_validate(unsealed_values(parse_json(data.decode("utf-8", "replace"), "manifest"), "manifest"))


def sae_settings(data: bytes) -> None:
    """The settings of a saved SAE."""
    value = parse_json(data.decode("utf-8", "replace"), "cfg.json")
    if isinstance(value, dict):
        parse_sae_config(value)


def shard(data: bytes) -> None:
    """A shard: its header as it is, and after a length that fits."""
    for each in (data, len(data).to_bytes(8, "little") + data):
        path = file_of(each, "shard.safetensors")
        whole = Shard(path, ShardFacts("0" * 32, 2, 1, 4, "float32"))
        for read in (written_digest, n_contexts_in, lambda _, whole=whole: whole.verify()):
            try:
                read(path)
            except DamagedError:
                continue


def tensors(data: bytes) -> None:
    """A file of tensors: its header as it is, and after a length that fits."""
    for each in (data, len(data).to_bytes(8, "little") + data + bytes(64)):
        try:
            load_tensors(file_of(each, "a.safetensors"), of="it")
        except ScansionError:
            continue


def corpus(data: bytes) -> None:
    """Files of text of every kind."""
    for name in (
        "a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv", "a.tsv", "a.json", "a.ndjson.zst", "a.arrow", "a.arrow.gz",
    ):  # fmt: skip
        path = file_of(data, name)
        try:
            for _ in reader_of(path)(path, "text"):
                pass
        except ScansionError:
            continue


def gguf_header(data: bytes) -> None:
    """The header of a GGUF file: as it is, and after what begins one that fits."""
    for each in (data, b"GGUF\x03\0\0\0" + data):
        try:
            read_header(file_of(each, "a.gguf"))
        except ScansionError:
            continue


def hook_point(data: bytes) -> None:
    """``--hook-point``."""
    str(HookPoint.parse(data.decode("utf-8", "replace")))


PARSERS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (mask, plan, settings, records, manifest, sae_settings, shard, tensors, corpus, gguf_header, hook_point)
}
SEEDS: dict[str, list[bytes]] = {
    "mask": [b"bands, count: 4, shared: 0.25", b"soft, start: {kind: random}", b"random_hard, seed: 3, acts_on: both"],
    "plan": [b"name: x\ncorpus: {source: sotu}\nruns: [{name: a, sae: {architecture: topk, d_sae: 8, k: 2}}]"],
    "settings": [b"core: {loss_contexts: 0}, position: {seed: 1}"],
    "records": [b'{"a": [1, 2.5, null, "x"], "checksum": "0"}', b"a: {b: [1, x]}\n"],
    "manifest": [b'{"identity": {}, "key": "x", "n_tokens": 1, "shards": {"shard-00000.safetensors": "0"}}'],
    "sae_settings": [b'{"architecture": "topk", "d_sae": 8, "k": 2, "mask": {"family": "bands", "count": 2}}'],
    "shard": [json.dumps({"acts": {"dtype": "F32", "shape": [2, 1, 4], "data_offsets": [0, 32]}}).encode()],
    "tensors": [b'{"__metadata__":{"digest":"0","of":"it"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'],
    "corpus": [
        b'{"text": "a"}\n{"text": null}\n', b'id,text\n1,"a, b"\n2,c\n', b'[{"messages": [{"role": "user", "content": "a"}]}]',
        b'{"tokens": [1, 2]}', b"ARROW1\0\0" + bytes(40), (0xFFFFFFFF).to_bytes(4, "little") + bytes(20),
    ],
    "gguf_header": [
        (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + (3).to_bytes(8, "little") + b"a.b" + (9).to_bytes(4, "little")
        + (8).to_bytes(4, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"x" + bytes(40),
    ],
    "hook_point": [b"layers.5.mlp", b"blocks.3.hook_resid_post", b"resid_post.5"],
}  # fmt: skip


def parse(name: str, data: bytes) -> None:
    """Run a parser; errors of ours, and those of the settings' validation, are what may come of it."""
    try:
        PARSERS[name](data)
    except (ScansionError, ValidationError):
        return
