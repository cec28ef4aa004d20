"""Take the text out of one row of a table, for every kind of source."""

from __future__ import annotations

from scansion.errors import CorpusError


def text_of(row: object, text_field: str, where: str) -> str | None:
    """The text in ``row[text_field]``; None if the row has a null there.

    Args:
        row: checked to be a mapping from field names to values.
        text_field: name of the field.
        where: where the row is from, for the error message.

    Raises:
        CorpusError: the row has no such field, or the field holds no text.
    """
    if not isinstance(row, dict) or text_field not in row:
        given = f"the fields {', '.join(map(repr, row))}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise CorpusError(f"{where} has no field {text_field!r} but {given}; set text_field")
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"{where}: the field {text_field!r} holds a {type(text).__name__}; expected text")
    return text
