"""Readers of local files: text, CSV, JSON, Parquet and Arrow, each also compressed."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from scansion.corpus.compressed import COMPRESSED, opened, plain_name, seekable, unreadable
from scansion.corpus.rows import Row, column_in, rows_of, value_in
from scansion.errors import CorpusError
from scansion.progress import say

Reader = Callable[[Path, str], Iterator[Row]]
ROWS_AT_ONCE = 256
_LONGEST_FIELD = 2**31 - 1
_say_once = cache(say)  # a source is read several times: checked, then tokenised


def reader_of(path: Path) -> Reader:
    """The reader for a file's ending. Call it with the path and the name of the column; it yields documents.

    Raises:
        CorpusError: the ending is unknown.
    """
    if reader := ENDINGS.get(Path(plain_name(path)).suffix):
        return reader
    raise CorpusError(
        f"{path} is of an unknown kind; expected a name that ends in one of {', '.join(ENDINGS)}, "
        f"perhaps followed by {' or '.join(COMPRESSED)}"
    )


def is_known(path: Path) -> bool:
    """Whether there is a reader for the file's ending."""
    return Path(plain_name(path)).suffix in ENDINGS


def is_text(path: Path) -> bool:
    """Whether the whole file is one document."""
    return ENDINGS.get(Path(plain_name(path)).suffix) is _read_text


def _read_text(path: Path, _column: str) -> Iterator[Row]:
    with opened(path) as stream:
        # Bytes, so that line ends reach the tokenizer as they are, as they do from JSON and Parquet.
        contents = stream.read()
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or leave it out") from error
    yield from rows_of([(str(path), "text", text)])


def _read_separated(path: Path, wanted: str, separator: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)  # documents are longer than the 131,072 characters that it is by default
    with opened(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        table = csv.reader(text, delimiter=separator, strict=True)
        try:
            first = text.readline()
            found = _separator_in(first, separator, wanted, path)
            table = csv.reader(itertools.chain([first], text), delimiter=found, strict=True)
            header = next(table, [])
            column = column_in(header, wanted, str(path)) if header else ""
            place = header.index(column) if header else 0

            def values() -> Iterator[tuple[str, str, str]]:
                for row in table:
                    if len(row) not in (0, len(header)):
                        raise CorpusError(
                            f"{path} line {table.line_num} has {len(row)} fields, and the header has {len(header)}; "
                            "quote fields that hold the separator or line breaks"
                        )
                    if row:
                        yield f"{path} line {table.line_num}", column, row[place]

            yield from rows_of(values())
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path} is not UTF-8 text (after line {table.line_num}); convert it, or leave it out"
            ) from error
        except csv.Error as error:
            raise CorpusError(f"{path} line {table.line_num} cannot be read ({error}); check its quotes") from error


def _separator_in(header: str, usual: str, wanted: str, path: Path) -> str:
    """The separator of a table: the one that its ending promises, or the one in its header if that one is not there."""
    found = max(",;\t|", key=header.count)
    if usual in header or wanted == header.strip().strip('"') or found not in header:
        return usual
    _say_once(f"{path}: the columns are separated by {found!r}, not by {usual!r}")
    return found


def _read_json_lines(path: Path, column: str) -> Iterator[Row]:
    with opened(path) as stream:
        yield from _json_rows(path, column, stream)


def _json_rows(path: Path, column: str, lines: Iterable[bytes]) -> Iterator[Row]:
    def values() -> Iterator[tuple[str, str, object]]:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{where} is not JSON ({error}); expected one object per line") from error
            yield value_in(row, column, where)

    return rows_of(values())


def _read_json(path: Path, column: str) -> Iterator[Row]:
    """JSON lines, or one value: a list of rows, an object that holds one list of rows, or a row."""
    with opened(path) as stream:
        first = next((line for line in stream if not line.isspace()), b"")
        if _is_json(first) and not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            yield from _json_rows(path, column, itertools.chain([first], stream))
            return
        try:
            value: Any = json.loads(first + stream.read()) if first else []
        except (ValueError, RecursionError) as error:
            # Lines of which the first is damaged are more likely than an object that begins and ends on its line.
            what = "line 1 is not JSON" if first.rstrip().endswith(b"}") else "is not JSON"
            raise CorpusError(f"{path} {what} ({error}); expected one object per line, or a list of objects") from error
    if isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        lists = [each for each in held.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        value = lists[0] if len(held) == len(lists) == 1 else [held]
    rows = cast("list[Any]", value) if isinstance(value, list) else [value]
    yield from rows_of(value_in(row, column, f"{path} row {number}") for number, row in enumerate(rows))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_parquet(path: Path, wanted: str) -> Iterator[Row]:
    with seekable(path) as stream:
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                column = _column_of(file.schema_arrow, wanted, path)
                batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column])
                yield from rows_of(_values(path, column, (batch.column(0) for batch in batches)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error) from error


def _read_arrow(path: Path, wanted: str) -> Iterator[Row]:
    with seekable(path) as stream:
        try:
            is_file = stream.read(6) == b"ARROW1"  # else a stream, as `datasets` writes it
            stream.seek(0)
            batches = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
            column = _column_of(batches.schema, wanted, path)

            def columns() -> Iterator[pa.Array]:
                each = map(batches.get_batch, range(batches.num_record_batches)) if is_file else iter(batches)
                for batch in each:
                    batch.validate(full=True)  # an offset that is damaged would be followed anywhere in memory
                    whole = batch.column(column)
                    yield from (whole[start : start + ROWS_AT_ONCE] for start in range(0, len(whole), ROWS_AT_ONCE))

            yield from rows_of(_values(path, column, columns()))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error) from error


def _values(path: Path, column: str, parts: Iterator[pa.Array]) -> Iterator[tuple[str, str, object]]:
    values = (value for part in parts for value in part.to_pylist())
    return ((f"{path} row {number}", column, value) for number, value in enumerate(values))


def _column_of(schema: pa.Schema, wanted: str, path: Path) -> str:
    column = column_in(schema.names, wanted, str(path))
    kind = schema.field(column).type
    inner = kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or _is_long_list(kind) else kind
    holds_text = pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)
    is_list = pa.types.is_list(kind) or _is_long_list(kind)
    if holds_text if not is_list else pa.types.is_integer(inner) or pa.types.is_struct(inner):
        return column
    raise CorpusError(f"{path}: the column {column!r} holds {kind}; expected text, token ids or chat messages")


def _is_long_list(kind: pa.DataType) -> bool:
    return pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


ENDINGS: dict[str, Reader] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".csv": partial(_read_separated, separator=","),
    ".tsv": partial(_read_separated, separator="\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""The reader for each ending of a file's name."""
