"""Fixtures of planted worlds."""

from tests.planted import easy, make_world

__all__ = ["easy", "make_world"]
