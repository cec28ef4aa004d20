"""A table of some runs as text: the same cells for the terminal and for the page."""

from __future__ import annotations

from dataclasses import dataclass, field

from scansion.evals import EvalResult
from scansion.study.final_info import SHORT
from scansion.text_table import TextTable
from scansion.training.config import is_short

ONE_SAE_NOTE = (
    "Brackets hold 95% bootstrap intervals of one trained SAE, over contexts, documents or test texts. They do not cover the "
    "variation between seeds."
)


def row_name(result: EvalResult) -> str:
    """The SAE's name in a row, marked if it was trained for too few steps."""
    return f"{result.sae} ({SHORT})" if is_short(result.sae_metadata.steps) else result.sae


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        name: its title.
        about: what it shows, in one sentence.
        columns: headings.
        groups: rows of cells, in groups with a line between them.
        notes: how to read it, and runs without figures with the reason.
        left: how many columns are aligned left; they name a row.
    """

    name: str
    about: str
    columns: list[str]
    groups: list[list[list[str]]]
    notes: list[str] = field(default_factory=list[str])
    left: int = 1

    def table(self) -> TextTable:
        """The table for a terminal."""
        return TextTable(self.columns, self.groups, left=self.left, repeated=self.left, title=self.name)
