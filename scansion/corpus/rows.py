"""Taking the text out of one row of a table, whichever kind of source the row is from."""

from __future__ import annotations

from scansion.errors import CorpusError


def text_of(row: object, text_field: str, where: str) -> str | None:
    """The text in ``row[text_field]``; None where the row has a null there.

    Args:
        row: what should be a mapping from field names to values.
        text_field: name of the field.
        where: the row's place, for the message.

    Raises:
        CorpusError: no such field, or something else than text in it.
    """
    if not isinstance(row, dict) or text_field not in row:
        found = f"the fields {', '.join(map(repr, row))}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise CorpusError(f"{where} has no field {text_field!r} but {found}; set text_field")
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"{where}: the field {text_field!r} holds a {type(text).__name__}; expected text")
    return text
