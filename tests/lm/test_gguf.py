"""A GGUF file is converted once, gives what transformers reads from it, and is refused before that if the layer is wrong."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from scansion.corpus import Contexts, CorpusConfig, tokenizer_fingerprint
from scansion.errors import ModelError
from scansion.lm import HookPoint, LanguageModel, activations_at, load_language_model, model_facts
from scansion.lm.gguf import read_header
from scansion.pipeline import HarvestSpec

WIDTH, LAYERS, INNER = 16, 3, 32
TOKENS = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "th", "the"]


def write_gguf(path: Path, seed: int = 0) -> None:
    """A llama of random weights with a byte-level tokenizer, in the layout of llama.cpp."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_context_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    numbers = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, numbers.standard_normal(shape, dtype=np.float32) / 4)

    add("token_embd.weight", len(TOKENS), WIDTH)
    add("output_norm.weight", WIDTH)
    add("output.weight", len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{part}.weight", WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{part}.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """The files that were read through transformers' GGUF reader from here on."""
    read: list[Path] = []
    plain = transformers.AutoModelForCausalLM.from_pretrained

    def count(*arguments, **settings):
        if settings.get("gguf_file"):
            read.append(settings["gguf_file"])
        return plain(*arguments, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", count)
    return read


def test_the_header_says_the_sizes(model: Path) -> None:
    header = read_header(model)
    per_layer = 4 * WIDTH * WIDTH + 2 * WIDTH + 3 * WIDTH * INNER
    assert header.n_layers == LAYERS
    assert header.n_parameters == 2 * len(TOKENS) * WIDTH + WIDTH + LAYERS * per_layer


def test_a_converted_model_is_what_the_file_holds(model: Path) -> None:
    loaded = load_language_model(str(model), device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    direct = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    assert tokenizer_fingerprint(loaded.tokenizer) == tokenizer_fingerprint(tokenizer)
    theirs = LanguageModel(direct.eval(), tokenizer, loaded.facts)
    contexts = Contexts.from_token_lists([[0, *range(5, 20)], [0, 250, 251]], 16, pad_id=1)
    for layer in range(LAYERS):
        ours, expected = (activations_at(lm, HookPoint(layer), contexts) for lm in (loaded, theirs))
        assert torch.equal(ours, expected)
    # Stores of earlier versions have this revision.
    assert loaded.facts.revision.startswith("xxh3:") and "+" not in loaded.facts.revision


def test_it_is_converted_once(model: Path, conversions: list[Path], capsys) -> None:
    for _ in range(2):
        facts = model_facts(str(model))
        load_language_model(str(model), device="cpu")
    assert len(conversions) == 1 and "converting" in capsys.readouterr().err
    assert Path(facts.location).parent == model.parent / "cache/models"
    # Another file is another model, whatever its name.
    write_gguf(model, seed=1)
    assert model_facts(str(model)).revision != facts.revision
    assert len(conversions) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "scansion.json"])
@pytest.mark.parametrize("damage", ["bit", "gone"])
def test_a_damaged_copy_is_made_again(name: str, damage: str, model: Path, conversions: list[Path], capsys) -> None:
    file = Path(model_facts(str(model)).location) / name
    raw = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])
    load_language_model(str(model), device="cpu")
    assert len(conversions) == 2 and "damaged" in capsys.readouterr().err
    assert file.read_bytes() == raw


def test_few_copies_are_kept(model: Path, monkeypatch) -> None:
    monkeypatch.setattr("scansion.lm.gguf.KEPT_MODELS", 2)
    folders = []
    for seed in range(3):
        write_gguf(model, seed)
        folders.append(Path(model_facts(str(model)).location))
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_a_layer_that_is_not_there_is_refused_from_the_header(
    model: Path, conversions: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the")
    spec = HarvestSpec(str(model), "layers.3", CorpusConfig(source=str(tmp_path / "text.txt"), context_length=16))
    with pytest.raises(ModelError, match=r"asks for layer 3, but .* has 3 layers, numbered 0 to 2"):
        spec.check()
    assert not conversions and not (tmp_path / "cache/models").exists()


@pytest.mark.parametrize("contents", [b"", b"GGUF", b"not a model", b"GGUF\x03\0\0\0" + b"\xff" * 60])
def test_a_file_that_is_no_gguf_is_refused_in_a_line(contents: bytes, model: Path, conversions: list[Path]) -> None:
    model.write_bytes(contents)
    with pytest.raises(ModelError, match=r"tiny\.gguf cannot be read as GGUF") as caught:
        model_facts(str(model))
    assert "\n" not in str(caught.value) and not conversions


def test_damaged_headers_are_errors_and_nothing_else(model: Path) -> None:
    raw = model.read_bytes()
    for at in range(0, 700):
        model.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 : 6000])
        try:
            read_header(model)
        except ModelError as error:
            assert "\n" not in str(error)
