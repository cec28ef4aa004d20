"""The base of results beyond core and sparse probing: what their data stands in for, and one line of figures."""

from __future__ import annotations

from abc import abstractmethod

from scansion.evals.base import EvalResult


class ExtraResult(EvalResult):
    """A result that says what should be known before its figures are read.

    Attributes:
        notes: which data are stand-ins and for what, what an audit says of the method; plain sentences.
    """

    notes: list[str]

    @abstractmethod
    def headline(self) -> dict[str, float | None]:
        """The figures for a table, by name; empty unless the status is ``ok``."""
