"""Documents: what a row of a data set holds, and which of its columns that is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import numpy as np

from scansion.errors import CorpusError
from scansion.progress import say

DEFAULT_COLUMN = "text"
COLUMNS = (DEFAULT_COLUMN, "content", "document", "problem", "input_ids", "tokens", "messages", "conversations")
"""Where documents are looked for, in this order, if no column is named."""

_say_once = cache(say)  # a source is read several times: checked, then tokenised
_ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT's conversations -> of chat templates


@dataclass(frozen=True)
class Chat:
    """A conversation: one mapping per turn, with its ``role`` and ``content``, as chat templates read them."""

    messages: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class TokenIds:
    """A document that was tokenised already."""

    ids: Sequence[int]


Document = str | TokenIds | Chat


@dataclass(frozen=True)
class Row:
    """A document, and the file and row that it is from, for messages."""

    where: str
    document: Document

    @cached_property
    def content(self) -> bytes:
        """The document's bytes, which decide whether it is held out."""
        match self.document:
            case str():
                return self.document.encode("utf-8")
            case TokenIds(ids):
                return b"ids" + np.asarray(ids, dtype="<i4").tobytes()
            case Chat(messages):
                return b"chat" + json.dumps(messages, sort_keys=True).encode("utf-8")


def column_in(columns: Collection[str], wanted: str, where: str) -> str:
    """The column that holds documents.

    Args:
        columns: names of all columns.
        wanted: the one that was asked for; :data:`DEFAULT_COLUMN` stands for the first of :data:`COLUMNS` that is there.
        where: for the error message.

    Raises:
        CorpusError: there is no such column.
    """
    if wanted in columns:
        return wanted
    for name in COLUMNS if wanted == DEFAULT_COLUMN else ():
        if name in columns:
            _say_once(f"reading the column {name!r}; --text-column names another")
            return name
    raise CorpusError(
        f"{where} has no column {wanted!r} but {', '.join(map(repr, columns))}; "
        "name one with --text-column (text_column in a plan)"
    )


def rows_of(values: Iterable[tuple[str, str, object]]) -> Iterator[Row]:
    """The documents among the values of columns; those that are null or blank are left out.

    Args:
        values: where each value is from and its column, for error messages, and the value.

    Raises:
        CorpusError: a value is no document.
    """
    for where, column, value in values:
        document = _document(value, column, where)
        if document is not None:
            yield Row(where, document)


def value_in(row: object, wanted: str, where: str) -> tuple[str, str, object]:
    """What a row of JSON or of a hub data set holds in the column of documents, as :func:`rows_of` takes it.

    Raises:
        CorpusError: the row has no such column.
    """
    if not isinstance(row, dict):
        raise CorpusError(f"{where} is a {type(row).__name__}; expected an object with the column {wanted!r}")
    fields = cast("dict[str, object]", row)
    column = column_in(fields, wanted, where)
    return where, column, fields[column]


def _document(value: object, column: str, where: str) -> Document | None:
    if value is None:
        return None
    if isinstance(value, str):
        # A lone surrogate is legal in JSON but not in UTF-8; the tokenizer would raise on it.
        return value.encode("utf-8", "replace").decode("utf-8") if value and not value.isspace() else None
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if not items:
            return None
        if all(type(item) is int for item in items):
            return TokenIds(items)
        if all(isinstance(item, dict) for item in items):
            return Chat(tuple(_message(item, f"{where} message {turn}") for turn, item in enumerate(items)))
    kind = f"list of {type(value[0]).__name__}" if isinstance(value, list) else type(value).__name__
    raise CorpusError(f"{where}: the column {column!r} holds a {kind}; expected text, token ids or chat messages")


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as chat templates expect it: without nulls, which Parquet fills in, and with its text in one piece."""
    message = {name: value for name, value in item.items() if value is not None}
    if "from" in message and "value" in message:
        message = {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
    content = message.get("content", "")
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        content = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    if not isinstance(message.get("role"), str) or not isinstance(content, str):
        raise CorpusError(f"{where} has the keys {', '.join(map(repr, item))}; expected a 'role' and a text 'content'")
    return {**message, "content": content.encode("utf-8", "replace").decode("utf-8")}
