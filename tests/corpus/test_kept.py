"""Contexts are kept for the same settings, tokenizer and files, and made again for anything else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scansion.corpus import CorpusConfig, kept_contexts, load_contexts
from tests.corpus.conftest import make_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("scansion.corpus.kept.folder_of_contexts", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def get(jsonl, documents, tokenizer):
    """``get(**settings)`` -> the contexts, and whether the text was tokenised for them."""
    source = jsonl(documents)

    def call(tokenizer=tokenizer, **settings):
        read = []

        def tokenise(*arguments):
            read.append(arguments)
            return load_contexts(*arguments)

        settings = {"source": source, "context_length": 16, "held_out_fraction": 0.3} | settings
        return kept_contexts(CorpusConfig(**settings), tokenizer, tokenise), bool(read)

    return call


def test_kept_contexts_are_what_was_tokenised(folder, get, capsys) -> None:
    first, tokenised = get(max_tokens=10**6)
    said = capsys.readouterr().err
    second, tokenised_again = get(max_tokens=10**6)
    assert tokenised and not tokenised_again
    assert second.fingerprint == first.fingerprint and second.provenance == first.provenance
    for side in ("train", "held_out"):
        assert getattr(second, side).fingerprint == getattr(first, side).fingerprint
    assert "fewer than the 1,000,000 requested" in said and capsys.readouterr().err == said


def test_anything_else_is_tokenised(folder, get, jsonl, documents) -> None:
    _, tokenised = get()
    assert tokenised and not get()[1]
    assert get(seed=1)[1]
    assert get(tokenizer=make_tokenizer(bos_token="<eos>", eos_token="<bos>"))[1]
    assert get(source=jsonl(documents, "copy.jsonl"))[1]
    # Edited, with the same size and the same time of change as far as programs can set it.
    path = Path(jsonl(documents))
    before = path.stat()
    changed = documents[::-1]
    jsonl(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    splits, tokenised = get()
    assert tokenised and not get()[1]
    assert splits.fingerprint == load_contexts(CorpusConfig(**splits.provenance["config"]), make_tokenizer(
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")).fingerprint  # fmt: skip


@pytest.mark.parametrize("file", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone"])
def test_damage_is_noticed_and_mended(file, damage, folder, get, capsys) -> None:
    first, _ = get()
    [path] = folder.glob(f"*.{file}")
    raw = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "bit":
            path.write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])
        case "cut":
            path.write_bytes(raw[: len(raw) // 2])
        case "empty":
            path.write_bytes(b"")
    splits, tokenised = get()
    assert tokenised and splits.fingerprint == first.fingerprint
    assert not get()[1]


def test_the_folder_is_bounded(folder, get, monkeypatch) -> None:
    get()
    one = next(folder.glob("*.safetensors")).stat().st_size
    monkeypatch.setattr("scansion.corpus.kept.LARGEST", 3 * one + one // 2)
    for seed in range(1, 5):
        get(seed=seed)
    assert len(list(folder.glob("*.safetensors"))) == len(list(folder.glob("*.json"))) == 3
    assert not get(seed=4)[1] and get()[1]


def test_a_data_set_of_the_hub_is_known_by_its_commit(folder, get, documents, monkeypatch) -> None:
    rows = [{"text": text} for text in documents]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter(rows)))
    commits: list[str | Exception] = ["a" * 40]

    class Api:
        def dataset_info(self, name: str, timeout: float) -> SimpleNamespace:
            assert name == "owner/name"
            if isinstance(commits[0], Exception):
                raise commits[0]
            return SimpleNamespace(sha=commits[0])

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    settings = {"source": "hub:owner/name", "max_documents": 40}
    assert get(**settings)[1] and not get(**settings)[1]
    commits[0] = "b" * 40
    assert get(**settings)[1] and not get(**settings)[1]
    commits[0] = ConnectionError("no route")
    assert get(**settings)[1] and get(**settings)[1]
