"""Subjects in processes of their own, so that what one library does to its process, such as keeping memory, helps no other.

Who trains takes one step after another. So each turn is two, of which the second is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.rounds import Spent, spent_on

# What our own training tells the C library of Linux (scansion.device.disable_malloc_trim), for a process that does not.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(1 << 62), "MALLOC_MMAP_MAX_": "0"}
# Seconds until the threads of the process whose turn it was have stopped waiting for more.
REST = 0.02


def once(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function, at the top of a module, returns when a process is started for it."""
    context = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=threads) as pool:
        return pool.submit(work, *arguments).result()


class Apart:
    """What a function makes, in a process of its own, as an action that takes turns.

    Args:
        make: at the top of a module; what it returns is called with the number of each round.
        arguments: of ``make``.
        environment: that the process gets beside this one's.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[int], object]],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, torch.get_num_threads(), make, arguments), daemon=True
        )
        with patch.dict(os.environ, environment or {}):
            self._process.start()
        theirs.close()

    def __call__(self, index: int) -> Spent:
        self._pipe.send(index)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process, which gives its memory back."""
        self._pipe.close()
        self._process.join()


def _serve(
    pipe: Connection, n_threads: int, make: Callable[..., Callable[[int], object]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(n_threads)
    action = make(*arguments)
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        time.sleep(REST)
        action(index)  # finds its threads asleep, and the cache full of what others worked on
        pipe.send(spent_on(lambda index=index: action(index)))
