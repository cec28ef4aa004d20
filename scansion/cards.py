"""Small HTML cards for notebooks: a heading, named facts, and optionally a table. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

# No class names and no style sheet: the notebook's own style, light or dark, then applies.
_CELL = "padding:.15em .8em;text-align:left;vertical-align:top"


def card(title: str, facts: Mapping[str, str], table: Sequence[Sequence[str]] = ()) -> str:
    """A card as HTML.

    Args:
        title: the heading.
        facts: name -> text; facts with an empty text are left out.
        table: the headings, then one row of cells after another; empty for no table.
    """
    lines = [
        f'<tr><th style="{_CELL};font-weight:normal;opacity:.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(text)}</td></tr>'
        for name, text in facts.items()
        if text
    ]
    parts = [f"<strong>{escape(title)}</strong>", f'<table style="margin:.3em 0">{"".join(lines)}</table>']
    if table:
        head, *body = table
        headings = "".join(f'<th style="{_CELL}">{escape(cell)}</th>' for cell in head)
        rows = ["".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) for row in body]
        inside = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(f"<table><thead><tr>{headings}</tr></thead><tbody>{inside}</tbody></table>")
    return f"<div>{''.join(parts)}</div>"
