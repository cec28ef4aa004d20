"""Progress counts what was done, says how fast and how long, and is silent about what takes no time."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from scansion import progress as module
from scansion.progress import progress, say


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_says_now_and_then_how_far_how_fast_and_how_long(clock: Clock, capsys) -> None:
    with progress("harvest", 1000, "tokens") as advance:
        for _ in range(40):
            clock.now += 1.0
            advance(25)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "harvest: 375/1,000 tokens (25/s, 25 s left)",
        "harvest: 750/1,000 tokens (25/s, 10 s left)",
        "harvest: 1,000/1,000 tokens (25/s) in 40 s",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(clock: Clock, capsys) -> None:
    with progress("train", 1000, "tokens", done=600) as advance:
        clock.now += 20.0
        advance(200)
    assert capsys.readouterr().err.splitlines() == [
        "train: 800/1,000 tokens (10/s, 20 s left)",
        "train: 800/1,000 tokens (10/s) in 20 s",
    ], "what ends before its total has nothing left to do"


def test_an_unknown_total_has_no_time_left(clock: Clock, capsys) -> None:
    with progress("read", None, "documents") as advance:
        clock.now += 16.0
        advance(32)
    assert capsys.readouterr().err.splitlines() == ["read: 32 documents (2/s)", "read: 32 documents (2/s) in 16 s"]


def test_what_takes_less_than_two_seconds_is_not_mentioned(clock: Clock, capsys) -> None:
    with progress("probe", 10, "probes") as advance:
        clock.now += 1.9
        advance(10)
    assert capsys.readouterr().err == ""


def test_an_error_inside_passes_and_nothing_is_claimed(clock: Clock, capsys) -> None:
    with pytest.raises(RuntimeError), progress("probe", 10, "probes"):
        clock.now += 60
        raise RuntimeError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [100, None])
def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, total: float | None) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=shown, force_terminal=True, width=120))
    with progress("[weird] name", total, "tokens", done=20) as advance:
        advance(40)
        advance(40)
    last = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue()).splitlines()[-1]
    assert "[weird] name" in last and "tokens/s" in last and "left" in last
    assert ("100%" in last) == (total is not None)


def test_what_is_said_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=shown, width=20))
    say("a line with [bold]markup[/] that is longer than the terminal is wide")
    assert shown.getvalue() == "a line with [bold]markup[/] that is longer than the terminal is wide\n"


def test_a_slow_rate_is_not_called_none(clock: Clock, capsys) -> None:
    with progress("answer", 20, "choices") as advance:
        for _ in range(2):
            clock.now += 40.0
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "answer: 10/20 choices (0.25/s, 40 s left)",
        "answer: 20/20 choices (0.25/s) in 80 s",
    ]
