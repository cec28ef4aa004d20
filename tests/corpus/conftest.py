"""Documents of many lengths and a byte-level BPE tokenizer trained on one sentence; nothing is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCE = "the state of union is strong and its people are free to say so again in every year that comes"
WORDS = SENTENCE.split()


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SENTENCE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8, **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Sixty different documents of 1 to 60 words, with line ends of both kinds and letters beyond ASCII."""
    rng = random.Random(0)
    return [f"{i}:\r\n" + " ".join(rng.choices([*WORDS, "naïve\n", "日本"], k=i + 1)) for i in range(60)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[list[str]], str]:
    """Writes documents to a file of JSON lines and returns its path."""

    def write(texts: list[str], name: str = "corpus.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return str(path)

    return write
