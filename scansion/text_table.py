"""A table for a terminal or a pipe: one that is too wide is printed in parts, so that no column is lost and no word cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

_UNBROKEN = 32  # cells up to this wide stay on one line
_BORDER, _PADDING = 1, 3  # of the table, and of each column with its own border


@dataclass(frozen=True)
class TextTable:
    """Cells to print.

    Attributes:
        columns: headings.
        groups: rows of cells, in groups with a line between them.
        left: how many columns are aligned left; the others are aligned right.
        repeated: how many columns name a row; every part of a table that is too wide begins with them.
        title: above it.
        caption: below it.
    """

    columns: Sequence[str]
    groups: Sequence[Sequence[Sequence[str]]]
    left: int = 1
    repeated: int = 1
    title: str | None = None
    caption: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The table in as many parts as the console's width needs."""
        parts = self._parts(options.max_width)
        for number, columns in enumerate(parts):
            title = self.title if not number or self.title is None else f"{self.title} (continued)"
            table = Table(title=title, title_justify="left", caption_justify="left")
            table.caption = self.caption if number == len(parts) - 1 else None
            for column, width in columns.items():
                justify = "left" if column < self.left else "right"
                table.add_column(Text(self.columns[column]), justify=justify, width=width, overflow="fold")
            for rows in self.groups:
                for row in rows:
                    table.add_row(*(Text(row[column]) for column in columns))  # Text, for a name may look like markup
                table.add_section()
            yield table

    def _parts(self, width: int) -> list[dict[int, int]]:
        """Column -> its width, for each part."""
        least, most = zip(*map(self._widths, range(len(self.columns))), strict=True)
        half = max(width // (2 * self.repeated) - _PADDING, 1)  # names leave half of the width to the rest
        names = {column: min(least[column], half) for column in range(self.repeated)}
        parts: list[dict[int, int]] = [dict(names)]
        for column in range(self.repeated, len(self.columns)):
            room = width - _taken(parts[-1].values())
            if least[column] + _PADDING > room and len(parts[-1]) > self.repeated:
                parts.append(dict(names))
                room = width - _taken(names.values())
            parts[-1][column] = max(min(least[column], room - _PADDING), 1)
        for part in parts:
            for column in part:
                part[column] += max(min(most[column] - part[column], width - _taken(part.values())), 0)
        return parts

    def _widths(self, column: int) -> tuple[int, int]:
        """The width in which no word is broken and no short cell wrapped, and that in which nothing is wrapped."""
        heading, cells = self.columns[column], [row[column] for rows in self.groups for row in rows]
        words = max((cell_len(word) for text in (heading, *cells) for word in text.split()), default=1)
        longest = max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)
        return max(words, min(longest, _UNBROKEN)), max(words, longest, cell_len(heading))


def _taken(widths: Iterable[int]) -> int:
    return _BORDER + sum(width + _PADDING for width in widths)
