"""Documents from the bundled corpus, local files or a data set on the hub; read lazily."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.folders import BUNDLED, local_files
from scansion.corpus.hub import read_hub
from scansion.corpus.local import is_text, reader_of
from scansion.corpus.rows import Row
from scansion.errors import CorpusError


def read_rows(config: CorpusConfig) -> Iterator[Row]:
    """Yield the documents of ``config.source`` in a fixed order, without blank ones.

    Raises:
        CorpusError: the source is missing or cannot be read; raised at the latest when reading reaches the bad part.
        AssetError: the bundled corpus was not fetched.
    """
    return islice(_all_rows(config), config.max_documents)


def read_documents(config: CorpusConfig) -> Iterator[str]:
    """:func:`read_rows` of a source that holds text.

    Raises:
        CorpusError: also if a document is chat messages or token ids.
    """
    for row in read_rows(config):
        if not isinstance(row.document, str):
            raise CorpusError(f"{row.where} holds {type(row.document).__name__}; expected text; set text_column")
        yield row.document


def check_source(config: CorpusConfig) -> None:
    """Find errors in the source without reading all of it; call this before any expensive step.

    Checks the names of all files, the beginning of each file that holds a table, and that there is some text.

    Raises:
        CorpusError: no such file or data set, an unknown kind of file, no such column, or no text.
        AssetError: the bundled corpus was not fetched.
    """
    if config.source.startswith(HUB_PREFIX):
        has_text = next(read_rows(config), None) is not None
    else:
        has_text = False
        for path in local_files(config):
            # A text file has no column that could be missing, so it is enough that one of them holds text.
            if not (has_text and is_text(path)):
                has_text = next(reader_of(path)(path, config.text_field), None) is not None or has_text
    if not has_text:
        raise CorpusError(f"{config.source!r} holds no text; expected at least two documents that are not blank")


def corpus_assets(config: CorpusConfig) -> list[str]:
    """Names of the bundled assets that the text is read from: one or none."""
    return [config.source] if config.source in BUNDLED else []


def _all_rows(config: CorpusConfig) -> Iterator[Row]:
    if config.source.startswith(HUB_PREFIX):
        yield from read_hub(config)
    else:
        for path in local_files(config):
            yield from reader_of(path)(path, config.text_field)
