"""Progress: a bar with rate and time left on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

Advance = Callable[[float], None]
LOG_EVERY_SECONDS = 15.0

_CONTROL = dict.fromkeys(
    [*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}"
)


def printable(text: str) -> str:
    """The text with every control character and lone surrogate replaced, so that a name cannot steer the terminal."""
    return text.translate(_CONTROL)


class PlainConsole(Console):
    """A console that prints no control characters but its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What to print, its texts :func:`printable`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = PlainConsole(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    """Recent units per second, as ``2,310 tokens/s``."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        shown = "" if rate is None else f"{_in_figures(rate)} {task.fields['unit']}/s"
        return Text(shown, style="progress.data.speed")


def _in_figures(rate: float) -> str:
    """A whole number, or two significant figures below 10, so that a slow rate is not shown as 0."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def progress(what: str, total: float | None, unit: str, done: float = 0) -> Generator[Advance, None, None]:
    """Show progress on stderr while the block runs; yield ``advance(n)``.

    Args:
        what: a few words, for example ``"harvest"``.
        total: total number of units; None if unknown.
        unit: plural name of the unit, for example ``"tokens"``.
        done: units already done by an earlier, interrupted run.
    """
    if console.quiet:
        yield lambda n: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _Rate(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(what, total=total, completed=int(done), unit=unit)
            yield lambda n: bars.advance(task, n)
    else:
        yield from _logged(what, total, unit, done)


def _logged(what: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    current: float = done

    def line(now: float, ended: bool) -> str:
        rate = (current - done) / max(now - start, 1e-9)
        if total is None:
            return f"{what}: {current:,.0f} {unit} ({_in_figures(rate)}/s)"
        left = f", {(total - current) / rate:.0f} s left" if rate > 0 and not ended else ""
        return f"{what}: {current:,.0f}/{total:,.0f} {unit} ({_in_figures(rate)}/s{left})"

    def advance(n: float) -> None:
        nonlocal current, last
        current += n
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS and (total is None or current < total):
            last = now
            sys.stderr.write(line(now, ended=False) + "\n")

    yield advance
    now = time.monotonic()
    if now - start >= 2.0:
        sys.stderr.write(f"{line(now, ended=True)} in {now - start:.0f} s\n")


@contextmanager
def silence() -> Generator[None, None, None]:
    """No bars and no messages while the block runs."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def say(message: str) -> None:
    """Print a message for the user on stderr, as plain text."""
    console.print(message, markup=False, soft_wrap=True)
