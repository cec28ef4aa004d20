"""SAEBench and sae-probes on SAEs of ours: what masks do there; the suites themselves if ``SCANSION_SUITES`` has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scansion.errors import ShapeError
from scansion.evals.registry import figures_in
from scansion.evals.suites.config import SAEBenchResult
from scansion.evals.suites.runner import Adapter
from scansion.masks import BandMaskConfig, NoMaskConfig
from scansion.records import read_json
from scansion.sae import TopKConfig
from tests.conftest import random_contexts
from tests.interop.made import sae_of

SUITES = os.environ.get("SCANSION_SUITES", "")
real = pytest.mark.skipif(not SUITES, reason="needs SAEBench and sae-probes: make test-suites")
JOB = {"model": "llama", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "device": "cpu", "flat": "error"}


def test_a_masked_sae_never_reads_tokens_without_places_unsaid() -> None:
    sae = sae_of(TopKConfig(d_sae=32, k=4, mask=BandMaskConfig(count=2)), 16)
    x = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        acts = Adapter(sae, JOB).encode(x)  # texts longer than the mask
        assert torch.equal(acts, sae.encode(x, torch.arange(12).clamp_max(7)))
        with pytest.raises(ShapeError, match="flat: lifted"):
            Adapter(sae, JOB).encode(x[0])
        lifted = Adapter(sae, {**JOB, "flat": "lifted"})
        assert torch.equal(lifted.encode(x[0]), sae.lifted().encode(x[0], torch.zeros(12, dtype=torch.int64)))
        assert lifted.flat_batches == 1
        plain = sae_of(TopKConfig(d_sae=32, k=4, mask=NoMaskConfig()), 16)
        assert torch.equal(Adapter(plain, JOB).encode(x[0]), plain.encode(x[0]))


@pytest.mark.parametrize("flat", ["error", "lifted"])
def test_a_bias_of_a_band_is_never_that_of_the_number_of_a_row(flat: str) -> None:
    sae = sae_of(TopKConfig(d_sae=32, k=4, mask=BandMaskConfig(count=2, own_bias=True)), 16)
    adapter = Adapter(sae, {**JOB, "flat": flat})
    x = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        places = torch.arange(12).clamp_max(7)
        assert torch.equal(adapter(x), sae(x, places.expand(3, 12)))
        acts = adapter.encode(x)
        for call, rows in ((adapter.encode, x[0]), (adapter.decode, acts[0])):
            with pytest.raises(ShapeError, match="a decoder bias for each band"):
                call(rows)


def test_the_norm_of_what_was_encoded_is_undone() -> None:
    sae = sae_of(TopKConfig(d_sae=32, k=4, input_norm="layer_norm"), 16)
    adapter = Adapter(sae, JOB)
    for shape in ((3, 12, 16), (5, 16)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            acts = adapter.encode(x)
            for _ in range(2):  # SCR decodes twice
                assert torch.equal(adapter.decode(acts), sae(x))


def test_an_environment_without_the_suite_is_named(tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    train(run, store.folder, tmp_path / "topk", "none")
    for python, message in (
        (sys.executable, "has no sae_probes; make an environment"),
        (tmp_path / "no", "cannot be run"),
    ):
        status, _, err = run("sae-probes", tmp_path / "topk", "--held-out", store.folder, "--python", python)
        assert status == 2 and message in " ".join(err.split()), err


def train(run, store: Path, out: Path, mask: str) -> None:
    settings = ("--tokens", 2000, "--batch-tokens", 70, "--d-sae", 32, "--k", 4, "--device", "cpu")
    status, _, err = run("train", store, "--out", out, "--mask", mask, *settings)
    assert status == 0, err
    measured = ("--evaluations", "core", "--settings", "core: {loss_contexts: 0}", "--device", "cpu")
    status, _, err = run("eval", out, "--held-out", store, *measured)
    assert status == 0, err


@pytest.fixture
def byte_lm(tmp_path: Path) -> Path:
    """A small random model on single bytes, whose width is that of the tests' SAEs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **{letter: i for i, letter in enumerate(alphabet, 2)}}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=True, **names).save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@real
def test_sae_probes_itself(tmp_path: Path, make_store, run, byte_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = make_store(random_contexts(60))
    for name, mask in (("plain", "none"), ("masked", "bands, count: 2")):
        train(run, store.folder, tmp_path / name, mask)
    command = ("sae-probes", tmp_path / "plain", "--held-out", store.folder, "--python", SUITES, "--model", byte_lm)
    data = ("--datasets", "117_us_state_FL", "--k-values", 2, "--k-values", 16)
    status, out, err = run(*command, *data)
    assert status == 0, err
    assert "sae-probes top 16, AUC" in " ".join(out.split())
    written = json.loads((tmp_path / "plain" / "evals" / "sae_probes.json").read_text())
    assert 0.4 < written["top_k_auc"]["16"] < 1 and written["flat_batches"] > 0 and not written["lifted"]
    assert written["versions"]["sae-probes"]
    masked = (command[0], tmp_path / "masked", *command[2:], *data)
    status, _, err = run(*masked)
    assert status == 2 and "flat: lifted encodes them" in " ".join(err.split())
    status, _, err = run(*masked, "--flat", "lifted")
    assert status == 0, err
    written = json.loads((tmp_path / "masked" / "evals" / "sae_probes.json").read_text())
    assert written["lifted"] and "the mask was lifted" in written["notes"][0]


@real
def test_saebench_itself(tmp_path: Path, make_store, run, byte_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = make_store(random_contexts(60))
    train(run, store.folder, tmp_path / "masked", "bands, count: 2")
    # Its own name of a data set, found as a folder here.
    folder = tmp_path / "work" / "fancyzhx" / "ag_news"
    folder.mkdir(parents=True)
    for split, n in (("train", 400), ("test", 200)):
        lines = [{"text": f"{'aeiou'[i % 4] * 9} text number {i}", "label": i % 4} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path / "work")
    status, out, err = run(
        "saebench", tmp_path / "masked", "--held-out", store.folder, "--python", SUITES, "--model", byte_lm,
        "--datasets", "fancyzhx/ag_news", "--train-size", 40, "--test-size", 20, "--context-length", 32, "--k-values", 2,
    )  # fmt: skip
    assert status == 0, err
    assert "SAEBench probing" in out
    written = json.loads((tmp_path / "masked" / "evals" / "saebench.json").read_text())
    assert written["test_accuracy"] > 0.6 and written["flat_batches"] == 0 and not written["lifted"]


@real
def test_saebench_core_scr_and_tpp_themselves(
    tmp_path: Path, make_store, run, byte_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = make_store(random_contexts(60))
    train(run, store.folder, tmp_path / "masked", "bands, count: 2")
    home = tmp_path / "work"
    write_lines(home / "text", "train", [{"text": f"{'abcdefgh'[i % 8]} text of number {i} " * 20} for i in range(300)])
    for split, n in (("train", 45), ("test", 22)):
        professions = (0, 1, 2, 6, 9, 11, 13, 21, 22, 25, 26)  # those that SAEBench takes
        lines = [
            {"hard_text": f"{chr(97 + job) * 9} {'XY'[gender] * 3} number {i}", "profession": job, "gender": gender}
            for job in professions
            for gender in (0, 1)
            for i in range(n)
        ]
        write_lines(home / "LabHC" / "bias_in_bios", split, lines)
    monkeypatch.chdir(home)
    lm = LlamaForCausalLM.from_pretrained(byte_lm)
    with torch.no_grad():
        lm.model.embed_tokens.weight *= 500  # for SAEBench's probes, whose steps are of a fixed size
    lm.save_pretrained(byte_lm)
    command = ("saebench", tmp_path / "masked", "--held-out", store.folder, "--python", SUITES, "--model", byte_lm)
    parts = [each for part in ("core", "scr", "tpp") for each in ("--evaluations", part)]
    status, out, err = run(
        *command, *parts, "--train-size", 80, "--test-size", 40, "--context-length", 32, "--core-dataset", "text",
        "--core-batches", 2, "--lm-batch-size", 8, "--datasets", "LabHC/bias_in_bios_class_set1",
    )  # fmt: skip
    assert status == 0, err
    assert "SAEBench" in out and "probing" not in out
    written = read_json(tmp_path / "masked" / "evals" / "saebench.json")
    figures = figures_in(SAEBenchResult.model_validate(written))
    ablated = {f"saebench_{kind}_{n}" for kind in ("scr", "tpp") for n in (2, 5, 10, 20)}
    core = {f"saebench_{name}" for name in ("explained_variance", "ce_loss_score", "kl_div_score", "l0")}
    assert set(figures) == ablated | core
    assert set(written["raw"]) == {"core", "scr", "tpp"} and written["test_accuracy"] is None
    assert 0 < written["l0"] <= 4.01
    assert written["flat_batches"] == 0 and list(written["scr"]) == list(written["tpp"]) == ["2", "5", "10", "20"]
    assert not any((byte_lm / name).is_dir() for name in ("blocks.1.hook_resid_post", "scr", "tpp"))
    status, _, err = run(*command, "--evaluations", "core", "--core-dataset", "nobody/nothing")
    assert status == 2 and "SAEBench's core gives no result: " in " ".join(err.split())
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*command, "--evaluations", "scr")
    said = " ".join(err.split())
    assert status == 2 and "offline, a data set is read from a folder of its name (OWNER/NAME)" in said


def write_lines(folder: Path, split: str, lines: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def spelling_lm(tmp_path: Path) -> Path:
    """A small model whose tokens are words, and whose activations say which letter a word starts with."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [f"{first}{second}{third}" for first in letters for second in "aeioub" for third in "lmn"]
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "has", "the", "first", "letter", ":", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=True, **names).save_pretrained(tmp_path / "words")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    directions = torch.nn.functional.normalize(torch.randn(26, 16), dim=1)
    with torch.no_grad():
        for word, i in vocabulary.items():
            if word in words:
                lm.model.embed_tokens.weight[i] = 200 * directions[letters.index(word[0])] + 2 * torch.randn(16)
    lm.save_pretrained(tmp_path / "words")
    return tmp_path / "words"


@real
def test_saebench_absorption_itself(
    tmp_path: Path, make_store, run, spelling_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = make_store(random_contexts(60))
    train(run, store.folder, tmp_path / "masked", "bands, count: 2")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    command = (
        "saebench", tmp_path / "masked", "--held-out", store.folder, "--python", SUITES, "--model", spelling_lm,
        "--evaluations", "absorption", "--min-letters", 3, "--flat", "lifted",
    )  # fmt: skip
    status, out, err = run(*command)
    assert status == 0, err
    assert "absorption" in out
    written = json.loads((tmp_path / "masked" / "evals" / "saebench.json").read_text())
    assert 0 <= written["absorption_fraction"] <= 1 and written["lifted"] and written["flat_batches"] > 0
    assert not list((tmp_path / "work").iterdir())
