"""Readers of local files: text, JSON lines (plain or gzipped) and Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scansion.corpus.rows import text_of
from scansion.errors import CorpusError

Reader = Callable[[Path, str], Iterator[str | None]]
ROWS_AT_ONCE = 256


def reader_of(path: Path) -> Reader:
    """The reader for a file's ending. Call it with the path and the name of the text field; it yields documents.

    Raises:
        CorpusError: the ending is unknown.
    """
    for ending, reader in ENDINGS.items():
        if path.name.endswith(ending):
            return reader
    raise CorpusError(f"{path} is of an unknown kind; expected a name that ends in one of {', '.join(ENDINGS)}")


def _read_text(path: Path, _text_field: str) -> Iterator[str]:
    try:
        # Bytes, so that line ends reach the tokenizer as they are, as they do from JSON and Parquet.
        yield path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or leave it out") from error


def _read_json_lines(path: Path, text_field: str) -> Iterator[str | None]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield text_of(json.loads(line), text_field, f"{path} line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} line {number} is not JSON ({error}); expected one object per line") from error


def _read_parquet(path: Path, text_field: str) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise CorpusError(
                    f"{path} has no column {text_field!r} but {', '.join(map(repr, schema.names))}; set text_field"
                )
            kind = schema.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise CorpusError(f"{path}: the column {text_field!r} holds {kind}; expected text")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[text_field]):
                yield from batch.column(0).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CorpusError:
    reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
    return CorpusError(f"{path} cannot be read ({reason}); check that it is complete and that you may read it")


ENDINGS: dict[str, Reader] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json_lines,
    ".json.gz": _read_json_lines,
    ".parquet": _read_parquet,
}
"""The reader for each ending of a file's name."""
