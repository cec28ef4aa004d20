"""The small GPT-2: equal recipes give equal weights, an interrupted training resumes, and its name loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scansion.corpus import CorpusConfig, held_out_documents, read_training_documents
from scansion.errors import ModelError
from scansion.lm import HookPoint, activations_at, gpt2, load_language_model, model_facts
from scansion.lm.gpt2 import GPT2Recipe, gpt2_record, train_gpt2
from scansion.records import read_json
from tests.conftest import random_contexts


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> GPT2Recipe:
    """A model of 8 positions on thirty documents in which one word follows from the word before it."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    for number in range(30):
        turn = words[number % 8 :] + words[: number % 8]
        (folder / f"{number:02}.txt").write_text(f"document {number} " + " ".join(turn * 6))
    return GPT2Recipe(
        source=str(folder), vocabulary=300, n_layers=2, d_model=16, n_heads=2, context_length=8, steps=60,
        batch_contexts=8, lr=1e-2, warmup_steps=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(recipe: GPT2Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    train_gpt2(recipe, folder)
    return folder


def test_it_learns_and_says_how_well(trained: Path, recipe: GPT2Recipe) -> None:
    record = gpt2_record(trained)
    held_out = record["held_out"]
    assert held_out["perplexity"] < 0.5 * held_out["unigram_perplexity"] < 300
    assert len(held_out["nats_by_position"]) == 7
    assert record["recipe"] == recipe.model_dump() and record["training_tokens"] == 60 * 8 * 8
    n_held_out = len(held_out_documents(recipe.corpus()))
    assert held_out["documents"] == n_held_out > 0
    assert len(list(read_training_documents(recipe.corpus()))) == 30 - n_held_out
    assert not trained.with_name("gpt2-training").exists()


def test_equal_recipes_give_equal_weights_and_another_seed_gives_others(
    trained: Path, recipe: GPT2Recipe, tmp_path: Path
) -> None:
    again = train_gpt2(recipe, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert again["held_out"] == gpt2_record(trained)["held_out"]
    train_gpt2(recipe.model_copy(update={"seed": 1}), tmp_path / "other")
    assert (tmp_path / "other/model.safetensors").read_bytes() != (trained / "model.safetensors").read_bytes()


def test_an_interrupted_training_resumes_to_the_same_bytes(
    trained: Path, recipe: GPT2Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: gpt2._Windows, step: int) -> torch.Tensor:
        if step == 40:
            raise KeyboardInterrupt
        return whole(self, step)

    whole = gpt2._Windows.batch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpt2._Windows, "batch", stop)
        train_gpt2(recipe, tmp_path / "resumed", checkpoint_seconds=0.0)
    assert not (tmp_path / "resumed").exists()
    steps: list[int] = []
    monkeypatch.setattr(gpt2._Windows, "batch", lambda self, step: steps.append(step) or whole(self, step))
    train_gpt2(recipe, tmp_path / "resumed")
    assert steps == list(range(40, 60))
    assert (tmp_path / "resumed/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_starts_again(
    trained: Path, recipe: GPT2Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new-training").mkdir()
    (tmp_path / "new-training/checkpoint.safetensors").write_bytes(b"nothing of ours")
    train_gpt2(recipe, tmp_path / "new")
    assert "training starts again" in capsys.readouterr().err
    assert (tmp_path / "new/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_windows_lie_in_one_document_and_start_with_bos(recipe: GPT2Recipe) -> None:
    documents = [list(range(100, 110)), list(range(200, 220)), [1, 2, 3]]
    windows = gpt2._Windows(documents, 99, recipe)
    assert windows.n_tokens == 30, "a document shorter than a window is left out"
    tokens = torch.cat([windows.batch(step) for step in range(40)])
    assert (tokens[:, 0] == 99).all()
    assert (tokens[:, 2:] - tokens[:, 1:-1] == 1).all()
    assert {104 - 1, 214 - 1} <= set(tokens[:, 1].tolist()), "the last windows of both documents are drawn"


def test_its_name_loads_it_once_it_is_trained(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(gpt2, "gpt2_folder", lambda: tmp_path / "gpt2")
    with pytest.raises(ModelError, match="scansion assets train-gpt2"):
        model_facts("gpt2-sotu")
    (tmp_path / "gpt2").symlink_to(trained)
    lm = load_language_model("gpt2-sotu", device="cpu")
    assert (lm.facts.n_layers, lm.facts.d_model, lm.facts.max_positions) == (2, 16, 8)
    contexts = random_contexts(2)
    activations = activations_at(lm, HookPoint(0, "resid_pre"), contexts)
    embeddings = lm.model.base_model.wte.weight[contexts.tokens.long()] + lm.model.base_model.wpe.weight
    torch.testing.assert_close(activations, embeddings)
    status, out, err = run("assets", "train-gpt2", "--out", tmp_path / "record.json")
    assert status == 0, err
    assert "held-out documents; token frequencies alone give" in out
    assert read_json(tmp_path / "record.json") == gpt2_record(trained)


def test_a_damaged_model_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "gpt2"
    damaged.mkdir()
    for file in trained.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(gpt2, "gpt2_folder", lambda: damaged)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged; delete .* train-gpt2"):
        model_facts("gpt2-sotu")


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = GPT2Recipe(lr=1.0, steps=100, warmup_steps=10)
    rates = [recipe.lr_at(step) for step in range(100)]
    assert rates[:10] == [(step + 1) / 10 for step in range(10)]
    assert rates[10] == 1 and rates[10:] == sorted(rates[10:], reverse=True) and 0.1 < rates[-1] < 0.11
    assert CorpusConfig(source="sotu").held_out_fraction == recipe.corpus().held_out_fraction
