"""Work done in a process of its own that is killed again and again, and then left to finish."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from typing import Any

# Processes are forked from a server that has imported all this once and done nothing else, so that each starts in
# milliseconds, with none of the test's own state or threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["scansion.training", "tests.conftest", "transformers.models.llama.modeling_llama", "tests.killing"]
)


def kill_after(delays: Sequence[float], work: Callable[..., None], *arguments: Any) -> int:
    """Start ``work(started, *arguments)``, send SIGKILL some seconds after it calls ``started.set()``, for each delay;
    then let it run to its end.

    Returns:
        How many of the processes were killed, and not finished before.

    Raises:
        AssertionError: a process that was not killed failed.
    """
    killed = 0
    for delay in (*delays, None):
        started: Event = _CONTEXT.Event()
        process = _CONTEXT.Process(target=work, args=(started, *arguments))
        process.start()
        assert started.wait(60), "it never started"
        process.join(delay)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0
    return killed
