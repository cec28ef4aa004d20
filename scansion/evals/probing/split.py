"""Labelled texts and their split into a side to train on and a side to test on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class ProbingSet:
    """One binary task.

    Attributes:
        name: the set's name.
        texts: no text twice.
        labels: 0 or 1; of two labels in a table, 1 is the later in alphabetical order ("0" < "1", "False" < "True").
    """

    name: str
    texts: list[str]
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ProbingSplit:
    """One binary task split for probing: each side has as many texts of one label as of the other, and shares none."""

    train: ProbingSet
    test: ProbingSet

    @property
    def name(self) -> str:
        """The task's name."""
        return self.train.name
