"""Taking turns: everything that is compared does its work once per round, so that other load on the machine slows all alike."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from scansion.progress import say
from scansion.records import write_json

Spent = tuple[float, float]
"""Seconds by the clock, and of the processor."""

Action = Callable[[int], object]
"""Does a subject's work once; told the number of the round, from 0, which is the one to warm up. Returns what it spent where
it knows better than who calls it."""

Summaries = dict[str, dict[str, Any]]
"""Times of every subject, as :meth:`Times.summary` gives them."""

PACKAGES = (
    "scansion",
    "torch",
    "transformers",
    "sae-lens",
    "transformer-lens",
    "dictionary-learning",
    "nnsight",
    "eai-sparsify",
)


@dataclass
class Times:
    """Seconds of one subject, one number per round."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])

    def add(self, action: Callable[[], object]) -> None:
        """Time one more turn."""
        wall, cpu = spent_on(action)
        self.wall.append(wall)
        self.cpu.append(cpu)

    def summary(self) -> dict[str, Any]:
        """Medians, and the quartiles of the clock's seconds where there are enough rounds for them."""
        few = len(self.wall) < 4
        quartiles = [min(self.wall), max(self.wall)] if few else statistics.quantiles(self.wall, n=4)[::2]
        return {
            "wall_seconds": statistics.median(self.wall),
            "cpu_seconds": statistics.median(self.cpu),
            "extremes" if few else "quartiles": quartiles,
        }


def spent_on(action: Callable[[], object]) -> Spent:
    """What an action spends, or says that it spent."""
    wall, cpu = time.perf_counter(), time.process_time()
    said = action()
    if isinstance(said, tuple):
        return said
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(actions: Mapping[str, Action], rounds: int) -> Iterable[Summaries]:
    """Yield the summary of every subject's times after each round; the first turn of each is not counted."""
    for action in actions.values():
        action(0)
    times = {name: Times() for name in actions}
    for index in range(1, rounds + 1):
        for name, action in actions.items():
            times[name].add(lambda action=action, index=index: action(index))
        yield {name: own.summary() for name, own in times.items()}


class Record:
    """A result file, written again after every measurement, so that an interrupted run keeps its results.

    Until then an earlier result stays where it is.

    Args:
        path: the JSON file.
        module: the benchmark's name, for the command.
        settings: everything that was chosen.
    """

    def __init__(self, path: Path, module: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine(module), "settings": dict(settings)}

    def note(self, **parts: Any) -> None:
        """Add or replace parts of the result that are no measurements; they are written with the next one."""
        self.content |= parts

    def put(self, **parts: Any) -> None:
        """Add or replace parts of the result, and write it."""
        self.note(**parts)
        self.content["machine"]["load_average_at_end"] = os.getloadavg()
        write_json(self.path, self.content)

    def measure(
        self,
        key: str,
        actions: Mapping[str, Action],
        rounds: int,
        derive: Callable[[Summaries], dict[str, Any]] = lambda _: {},
    ) -> None:
        """Take turns, and put the times, with what derives from them, under ``key`` after every round."""
        for index, found in enumerate(take_turns(actions, rounds), 1):
            self.put(**{key: {"rounds": index, "times": found, **derive(found)}})
            say(f"{key}: round {index} of {rounds}, {self.path}")


def machine(module: str) -> dict[str, Any]:
    """What the figures were measured on, and with."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "command": " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]]),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit measured; a plus sign after it where the code differs from it."""
    try:
        changed = _git("status", "--porcelain", "--", "scansion", "benchmarks/*.py")
        return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
