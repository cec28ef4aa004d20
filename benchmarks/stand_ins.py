"""Stand-ins for packages that the compared libraries import without using them in a training step."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

UNUSED = frozenset(
    {
        "babe",
        "circuitsvis",
        "nltk",
        "nnsight",
        "plotly_express",
        "tenacity",
        "umap",
        "wandb",
        "zstandard",
    }
)
"""Packages that peers import and that no training step uses."""


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """In a ``with`` block, finds an empty module in place of each of :data:`UNUSED` that is not installed.

    So fewer wheels are needed on a machine that can download nothing.
    """

    def __enter__(self) -> None:
        sys.meta_path.append(self)  # after everything that finds real modules

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """One for a stand-in, or None."""
        if fullname.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module in which every name can be looked up, called and derived from."""
        stand_in: Any = MagicMock(name=spec.name)
        stand_in.__name__, stand_in.__path__, stand_in.__spec__ = spec.name, [], spec
        return stand_in

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""
