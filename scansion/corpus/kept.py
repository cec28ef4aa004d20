"""Contexts that are kept in the cache, so that text is not tokenised again each time a store of it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from scansion.assets import cache_dir
from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.contexts import Contexts
from scansion.corpus.folders import local_files
from scansion.corpus.tokenise import CorpusSplits, say_what_is_short
from scansion.corpus.tokenizers import tokenizer_fingerprint
from scansion.errors import DamagedError
from scansion.files import atomic_file, fingerprint
from scansion.progress import say
from scansion.records import read_object, write_json
from scansion.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:
    import transformers

Tokenise = Callable[[CorpusConfig, "transformers.PreTrainedTokenizerBase"], CorpusSplits]

LARGEST = 4_000_000_000
"""Bytes of contexts that are kept; those that were not used for the longest time go first."""
_VERSION = 1  # to be raised by whoever changes what contexts a config gives


def folder_of_contexts() -> Path:
    """Where contexts are kept."""
    return cache_dir() / "contexts"


def kept_contexts(
    config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase, tokenise: Tokenise
) -> CorpusSplits:
    """What ``tokenise`` returns, or returned for the same settings, tokenizer and files.

    A file counts as the same if its path, size and times of change are: the last of these (``ctime``) is set by the system
    at every write, and no program can set it back. A data set of the hub counts as the same at the same commit; where the hub
    does not answer, it is tokenised again.

    Args:
        config: the corpus.
        tokenizer: a fast one.
        tokenise: :func:`scansion.corpus.load_contexts`.
    """
    text = _text_of(config)
    if text is None:
        return tokenise(config, tokenizer)
    path = folder_of_contexts() / f"{_key(config, tokenizer, text)}.safetensors"
    if path.exists():
        try:
            splits = _read(path)
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            say(f"{path} is made again from the text ({' '.join(str(error).split())})")
        else:
            say_what_is_short(splits.provenance)
            return splits
    splits = tokenise(config, tokenizer)
    with suppress(OSError):  # no cache is better than no contexts
        _write(path, splits)
    return splits


def _text_of(config: CorpusConfig) -> list[Any] | None:
    """What changes when the text does; None if that cannot be found out."""
    if not config.source.startswith(HUB_PREFIX):
        files = [(str(path.resolve()), path.stat()) for path in local_files(config)]
        return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files]
    import huggingface_hub  # takes a moment, and local corpora do not need it

    try:
        commit = huggingface_hub.HfApi().dataset_info(config.source.removeprefix(HUB_PREFIX), timeout=5).sha
    except Exception:  # the hub's client and the network raise anything; reading the text will say what is wrong
        return None
    return [commit] if commit else None


def _key(config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase, text: list[Any]) -> str:
    return fingerprint(
        {
            "version": [_VERSION, tokenizers.__version__],
            "config": config.model_dump(mode="json"),
            "tokenizer": [tokenizer_fingerprint(tokenizer), tokenizer.chat_template],
            "text": text,
        }
    )


def _read(path: Path) -> CorpusSplits:
    record = read_object(path.with_suffix(".json"))
    tensors = load_tensors(path, digest=record["digest"])
    parts = [
        Contexts(**{name.removeprefix(side): tensor for name, tensor in tensors.items() if name.startswith(side)})
        for side in ("train.", "held_out.")
    ]
    for file in (path, path.with_suffix(".json")):
        with suppress(OSError):
            os.utime(file)  # used last
    return CorpusSplits(*parts, fingerprint=record["fingerprint"], provenance=record["provenance"])


def _write(path: Path, splits: CorpusSplits) -> None:
    sides = {"train": splits.train, "held_out": splits.held_out}
    with atomic_file(path) as temporary:
        digest = save_tensors(
            temporary,
            {f"{side}.{name}": tensor for side, part in sides.items() for name, tensor in part.tensors().items()},
        )
    record = {"digest": digest, "fingerprint": splits.fingerprint, "provenance": splits.provenance}
    write_json(path.with_suffix(".json"), record)
    room = LARGEST
    for file in sorted(path.parent.glob("*.safetensors"), key=lambda file: -file.stat().st_mtime_ns):
        room -= file.stat().st_size
        if room < 0 and file != path:
            file.unlink(missing_ok=True)
            file.with_suffix(".json").unlink(missing_ok=True)
