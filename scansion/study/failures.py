"""Why one arm at one seed has no result: a file in its folder, so that failures stay in the record."""

from __future__ import annotations

import traceback
from pathlib import Path

from scansion.records import read_object, write_json

_FAILURE = "failure.json"


def record_failure(folder: Path, error: str, cause: BaseException | None = None) -> Path:
    """Write into ``folder`` that this trial failed, why, and the traceback of the exception if there was one.

    Returns:
        The file written.
    """
    record = {"error": error}
    if cause is not None:
        record["traceback"] = "".join(traceback.format_exception(cause))
    write_json(folder / _FAILURE, record)
    return folder / _FAILURE


def read_failure(folder: Path) -> str | None:
    """Why the trial in ``folder`` failed; None if it has not."""
    path = folder / _FAILURE
    return str(read_object(path).get("error")) if path.is_file() else None


def clear_failure(folder: Path) -> None:
    """Forget the failure, so that the trial is run again."""
    (folder / _FAILURE).unlink(missing_ok=True)
