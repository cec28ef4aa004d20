"""Jobs of several ranks on one machine: forked from a server that has torch loaded, so that each takes little time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Literal

import torch
from torch import distributed as dist

from scansion.activations import ActivationStore
from scansion.distributed.launch import RankSession, train_on_ranks
from scansion.distributed.ranks import Ranks
from scansion.errors import ScansionError
from scansion.sae import SAEConfig
from scansion.training import TrainingConfig, TrainingRun

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
LIMIT = 120


def run_of(folder: Path, sae: SAEConfig, **settings: object) -> TrainingRun:
    """50 steps of 8 positions x 8 tokens, each step a line of metrics."""
    common = {"tokens": 3200, "batch_tokens": 64, "log_every": 1, "use_position_0": True, "device": "cpu", "lr": 3e-3}
    return TrainingRun.at(folder, sae, TrainingConfig.model_validate(common | settings))


def start(
    size: int,
    run: TrainingRun,
    store: Path,
    die: tuple[int, int] | None = None,
    log: Path | None = None,
    divide: Literal["auto", "features"] = "auto",
    group_is_there: bool = False,
) -> list[int]:
    """Train on ``size`` ranks; returns their exit codes.

    Args:
        size: number of ranks.
        run: what to train.
        store: on what.
        die: a rank and the number of steps after which it is killed.
        log: gets a file for each rank: the bytes it gave to others at each step, or its error.
        divide: as for :func:`train_on_ranks`.
        group_is_there: make the process group beforehand, as Ray Train does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (size, port, run, store, die, log, divide, group_is_there)
    ranks = [_CONTEXT.Process(target=_rank, args=(rank, *given)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _rank(
    rank: int,
    size: int,
    port: int,
    run: TrainingRun,
    store: Path,
    die: tuple[int, int] | None,
    log: Path | None,
    divide: Literal["auto", "features"],
    group_is_there: bool,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    counted: list[int] = []
    advance = RankSession.advance

    def observed(self: RankSession, batch) -> None:
        ranks: Ranks = self._ranks
        before = ranks.given_bytes
        if die == (rank, self.learner.step):
            os.kill(os.getpid(), signal.SIGKILL)
        advance(self, batch)
        counted.append(ranks.given_bytes - before)

    RankSession.advance = observed
    said = ""
    if group_is_there:
        dist.init_process_group("gloo")
        os.environ |= {"RANK": "of somebody else", "WORLD_SIZE": "1"}
    try:
        assert train_on_ranks(run, ActivationStore(store), divide=divide) == (rank == 0)
        assert dist.is_initialized() == group_is_there
    except ScansionError as error:
        said = f"{type(error).__name__}: {error}"
        raise SystemExit(2) from None
    finally:
        if log is not None:
            log.mkdir(exist_ok=True)
            (log / str(rank)).write_text(said or " ".join(map(str, counted)))
