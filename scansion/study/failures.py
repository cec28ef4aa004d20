"""Why one arm at one seed has no result: a file in its folder, so that failures stay in the record; and when to try again."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import xxhash

from scansion.plugins import package_sources
from scansion.records import read_object, write_json
from scansion.registry import loaded_plugins

_FAILURE = "failure.json"


@dataclass(frozen=True)
class Failure:
    """Why a trial has no result.

    Attributes:
        error: in a line.
        code: fingerprint of the code that it failed with, see :func:`code_fingerprint`; None in records of earlier versions.
        settings: fingerprint of the settings; None likewise.
    """

    error: str
    code: str | None
    settings: str | None


def record_failure(folder: Path, error: str, settings: str, code: str, cause: BaseException | None = None) -> Path:
    """Write into ``folder`` that this trial failed, why, and the traceback of the exception if there was one.

    Args:
        folder: of the trial.
        error: in a line.
        settings: fingerprint of the settings.
        code: :func:`code_fingerprint` of the process that started the study.
        cause: the exception.

    Returns:
        The file written.
    """
    record = {"error": error, "code": code, "settings": settings}
    if cause is not None:
        record["traceback"] = "".join(traceback.format_exception(cause))
    write_json(folder / _FAILURE, record)
    return folder / _FAILURE


def read_failure(folder: Path) -> Failure | None:
    """Why the trial in ``folder`` failed; None if it has not."""
    path = folder / _FAILURE
    if not path.is_file():
        return None
    record = read_object(path)
    return Failure(str(record.get("error")), record.get("code"), record.get("settings"))


def clear_failure(folder: Path) -> None:
    """Forget the failure, so that the trial is run again."""
    (folder / _FAILURE).unlink(missing_ok=True)


def code_fingerprint() -> str:
    """A hash of the code that runs: this package, the plugins loaded, and the script that was started.

    What failed is tried again by itself once this has changed: whoever edits a mask and starts the run again expects that.
    """
    digest = xxhash.xxh3_128(package_sources())
    for plugin in loaded_plugins():
        digest.update(repr(sorted(plugin.items())).encode())
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and Path(script).is_file():
        digest.update(Path(script).read_bytes())
    return digest.hexdigest()
