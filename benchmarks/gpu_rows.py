"""What a benchmark on a GPU finds, row by row: timed, limited in time, and written to a file after each row."""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import wait_for
from scansion.progress import say
from scansion.records import write_json

Row = dict[str, Any]
GRACE = 10  # seconds that the last row may take beyond the end


@dataclass
class Rows:
    """What was found, written to a file after each row.

    Attributes:
        path: the JSON file.
        device: where.
        until: time after which nothing more is begun; a part may have an earlier one of its own.
    """

    path: Path
    device: torch.device
    until: float
    content: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def are_over(self) -> bool:
        """Whether rows are only skipped from now on."""
        return time.monotonic() > self.until

    def add(self, part: str, name: str, work: Callable[[], Row]) -> Row:
        """Do some work and write down what it returns, or why it failed or was skipped."""
        if self.are_over:
            found: Row = {"skipped": "out of time"}
        else:
            if self.device.type == "cuda":  # what the row before has left is not this one's
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            try:
                found = work()
            except Exception as error:  # one way that fails must not cost the others their row
                first_line = next(iter(str(error).splitlines()), "")
                found = {"failed": f"{type(error).__name__}: {first_line[:200]}"}
        self.content.setdefault(part, {})[name] = found
        write_json(self.path, self.content)
        numbers = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
        )
        say(f"{part} | {name}: {', '.join(numbers)}")
        return found

    @contextmanager
    def ending_at(self, until: float) -> Iterator[None]:
        """Begin nothing after ``until`` in this block, so that later parts get their turn."""
        before = self.until
        self.until = min(before, until)
        try:
            yield
        finally:
            self.until = before

    def peak_gb(self) -> float | None:
        """The most memory that the row has taken on a GPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None


@contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in a row that is still running by then: as it is the last one, the script then ends."""

    def stop(*_: object) -> None:
        raise TimeoutError("the script's time was over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def timed(action: Callable[[], object], device: torch.device, work: dict[str, float] | None = None) -> Row:
    """Milliseconds of an action: the median of five lots, each of as many as take about a tenth of a second."""
    for _ in range(4):
        action()
    first = _lot(action, device, 2)
    n = max(1, min(100, int(0.1 / first)))
    lots = [_lot(action, device, n) for _ in range(5)]
    seconds = statistics.median(lots)
    rates = {name: round(amount / seconds / 1e12, 3) for name, amount in (work or {}).items()}
    return {"ms": 1000 * seconds, "lowest_ms": 1000 * min(lots), **rates}


def _lot(action: Callable[[], object], device: torch.device, n: int) -> float:
    wait_for(device)
    began = time.perf_counter()
    for _ in range(n):
        action()
    wait_for(device)
    return (time.perf_counter() - began) / n
