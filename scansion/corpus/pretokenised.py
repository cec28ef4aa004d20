"""Documents that were tokenised before: whose token ids they are, and whether the tokenizer has them."""

from __future__ import annotations

from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING

from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.folders import SAE_LENS, local_files
from scansion.corpus.rows import TokenIds
from scansion.corpus.tokenizers import tokenizer_fingerprint
from scansion.errors import CorpusError, DamagedError
from scansion.files import expanded
from scansion.progress import say
from scansion.records import read_object

if TYPE_CHECKING:
    import transformers

_say_once = cache(say)


def check_ids(document: TokenIds, n_tokens: int, where: str) -> None:
    """Raise :class:`CorpusError` if an id is negative, or ``n_tokens`` or more."""
    low, high = min(document.ids), max(document.ids)
    if low < 0 or high >= n_tokens:
        raise CorpusError(
            f"{where} has the token id {low if low < 0 else high}, and the tokenizer has {n_tokens:,} tokens; "
            "use the tokenizer that made the ids"
        )


def check_tokenised_by(config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Raise unless the token ids of a source are this tokenizer's, as far as the source says whose they are.

    SAELens writes the tokenizer's name into ``sae_lens.json``, in the data set's folder. Names count without their owner;
    if they differ, the tokenizer of that name is compared, should it be on this machine.

    Raises:
        CorpusError: they are another tokenizer's, or the file is damaged.
    """
    theirs = _named_tokenizer(config)
    ours = tokenizer.name_or_path
    if theirs is None:
        _say_once(f"{config.source}: nothing says whose token ids it holds; they are read as those of {ours}")
    elif PurePath(theirs).name.lower() != _base_name(ours) and not _is_same(theirs, tokenizer):
        raise CorpusError(
            f"{config.source} was tokenised with {theirs}, as its {SAE_LENS} says, and the model's tokenizer is {ours}; "
            f"use a model with that tokenizer, or the text before it was tokenised"
        )


def _named_tokenizer(config: CorpusConfig) -> str | None:
    if config.source.startswith(HUB_PREFIX):
        return None
    folders = [file.parent for file in local_files(config)[:1]] + [expanded(config.source)]
    for path in (folder / SAE_LENS for each in folders for folder in (each, each.parent)):
        if path.is_file():
            try:
                name = read_object(path)["tokenizer_name"]
            except (DamagedError, KeyError) as error:
                raise CorpusError(
                    f"{path} does not say which tokenizer made the token ids; correct or delete it"
                ) from error
            return str(name)
    return None


def _base_name(name_or_path: str) -> str:
    """``gpt2`` for gpt2, openai-community/gpt2, and a folder of either, that of the hub's cache included."""
    for part in reversed(PurePath(name_or_path).parts):
        if part.startswith("models--"):
            return part.split("--")[-1].lower()
    return PurePath(name_or_path).name.lower()


def _is_same(name: str, tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception:  # transformers raises a dozen unrelated types for a tokenizer that is not here
        return False
    return tokenizer_fingerprint(theirs) == tokenizer_fingerprint(tokenizer)
