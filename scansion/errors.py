"""Errors that a user can fix. The command line prints them in one line; any other error is a bug and keeps its traceback."""

from __future__ import annotations

from pydantic import ValidationError


class ScansionError(Exception):
    """Base of all these errors. The message says what was wrong, what was expected and what to do."""


class AssetError(ScansionError):
    """An asset could not be fetched, failed its hash, or is missing from the cache."""


class ConfigError(ScansionError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class ShapeError(ScansionError, ValueError):
    """A tensor does not have the expected shape."""


class CorpusError(ScansionError):
    """The text could not be read, or there is not enough of it."""


class ModelError(ScansionError):
    """The language model, its hook point or its context length does not fit the request."""


class StoreError(ScansionError):
    """An activation store is missing, unfinished, damaged, or made from something else."""


class TrainingError(ScansionError):
    """Training cannot start or continue, for example because the loss is no longer finite."""


class EvalError(ScansionError):
    """An evaluation cannot run on the given SAE, store or data."""


class BusyError(ScansionError):
    """Another process is writing in the folder."""


class StudyError(ScansionError):
    """A run of a study failed; the other runs were done."""


def describe(error: ValidationError, whole: str = "plan") -> str:
    """A validation error in one line: each mistake with its place; ``whole`` is the place of mistakes outside any field."""
    return "; ".join(
        f"{'.'.join(str(part) for part in mistake['loc']) or whole}: {mistake['msg'].removeprefix('Value error, ')}"
        for mistake in error.errors()
    )
