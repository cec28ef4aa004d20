"""What corpora ask of a tokenizer: its fingerprint, its special tokens, and the ids of plain text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer

from scansion.errors import CorpusError
from scansion.files import fingerprint

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait


def tokenizer_fingerprint(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Hash of the tokenizer's rules and special tokens; its name does not change it.

    Raises:
        CorpusError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CorpusError(f"{type(tokenizer).__name__} is not a fast tokenizer; load the model's fast one")
    # Truncation and padding are settings of the last call, not part of the tokenizer.
    rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return fingerprint([rules, [_special_id(tokenizer, role) for role in ("bos", "eos", "pad", "unk")]])


def token_ids(
    texts: list[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    special_tokens: Literal["literal", "parsed"] = "literal",
) -> list[list[int]]:
    """The ids of each text's own tokens, without BOS, EOS or truncation.

    Args:
        texts: any text, perhaps with the name of a special token such as ``<|endoftext|>`` in it.
        tokenizer: a fast one.
        special_tokens: see :class:`CorpusConfig`. ``literal`` never gives a special token, unless the tokenizer's model has
            it as a word of its own, as word-level and unigram models may.
    """
    if not texts:
        return []
    return tokenizer(
        texts, add_special_tokens=False, split_special_tokens=special_tokens == "literal", return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip


def start_and_padding(tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int | None, int]:
    """The token that every context starts with, and the one that fills it up after its end.

    Returns:
        BOS, or EOS if there is no BOS: some model families, such as Qwen, were trained with EOS between documents. None
        if there is neither. Then the padding token, or one that stands in for it.
    """
    bos, eos, pad = (_special_id(tokenizer, role) for role in ("bos", "eos", "pad"))
    padding = next((token for token in (pad, eos, bos) if token is not None), 0)
    return bos if bos is not None else eos, padding


def _special_id(tokenizer: transformers.PreTrainedTokenizerBase, role: str) -> int | None:
    value = getattr(tokenizer, f"{role}_token_id")
    return value if isinstance(value, int) else None
