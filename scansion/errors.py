"""Errors that a user can fix. The command line prints them in one line; any other error is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class ScansionError(Exception):
    """Base of all these errors. The message says what was wrong, what was expected and what to do.

    Example:
        >>> try:
        ...     scansion.load_sae("nowhere")
        ... except scansion.ScansionError as error:
        ...     message = str(error)
    """


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
    """An activation store is missing, unfinished, or made from something else."""


class TrainingError(ScansionError):
    """Training cannot start or continue, for example because the loss is no longer finite."""


class EvalError(ScansionError):
    """An evaluation cannot run on the given SAE, store or data."""


class DamagedError(ScansionError):
    """A file of ours is not what was written: cut short, changed, or of something else."""


class BusyError(ScansionError):
    """Another process is writing in the folder."""


class ClusterError(ScansionError):
    """A machine of a cluster lacks what a task needs, or a task was lost too often."""


class StudyError(ScansionError):
    """A run of a study failed; the other runs were done."""


def describe(error: ValidationError, whole: str = "plan", model: type[BaseModel] | None = None) -> str:
    """A validation error in one line: each mistake with its place.

    Args:
        error: what pydantic raised.
        whole: the place of mistakes outside any field; without one, the mistake alone is said.
        model: the class that was validated, whose settings are named where a key is unknown.
    """
    said: list[str] = []
    for mistake in error.errors():
        place = ".".join(str(part) for part in mistake["loc"]) or whole
        text = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            text = "there is no such setting" + _settings_near(model, mistake["loc"])
        said.append(f"{place}: {text}" if place else text)
    return "; ".join(said)


def _settings_near(model: type[BaseModel] | None, loc: tuple[int | str, ...]) -> str:
    """The known setting closest to the last part of ``loc``, else all that stand beside it; empty if they are not known."""
    for part in loc[:-1]:
        if model is not None and isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    if model is None:
        return ""
    names = model.model_fields
    return did_you_mean(str(loc[-1]), names) or f"; the settings here are {', '.join(names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the known name closest to a wrong one; empty if none is close."""
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one config class in an annotation such as ``list[RunPlan] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
