"""The errors a user can mend. The command line prints them as one line; anything else is a bug and keeps its traceback."""

from __future__ import annotations

from pydantic import ValidationError


class ScansionError(Exception):
    """Base of every error that says what was wrong, what was expected and what to do."""


class AssetError(ScansionError):
    """An asset could not be fetched, failed its hash, or is missing from the cache."""


class ConfigError(ScansionError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class ShapeError(ScansionError, ValueError):
    """A tensor does not have the shape that was asked for."""


class CorpusError(ScansionError):
    """The text could not be read, or there is not enough of it."""


class ModelError(ScansionError):
    """The language model, its hook point or its context length does not fit the request."""


class StoreError(ScansionError):
    """An activation store is missing, unfinished, damaged, or made from something else."""


class TrainingError(ScansionError):
    """Training cannot start or go on, for example because the loss is no longer finite."""


class EvalError(ScansionError):
    """An evaluation cannot be carried out on what it was given."""


class BusyError(ScansionError):
    """Another process is writing in the folder."""


class StudyError(ScansionError):
    """Some run of a study failed; the others were carried out."""


def describe(error: ValidationError, whole: str = "plan") -> str:
    """A validation error in one line: where and what, for each mistake; ``whole`` names what is wrong as a whole."""
    return "; ".join(
        f"{'.'.join(str(part) for part in mistake['loc']) or whole}: {mistake['msg'].removeprefix('Value error, ')}"
        for mistake in error.errors()
    )
