"""The ranks of a job, and the only place where they exchange tensors: every byte of a training step is counted here."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scansion.errors import TrainingError
from scansion.progress import console

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` sets, and what any other launcher has to set."""


def in_job() -> bool:
    """Whether this process is a rank of a job: all of :data:`VARIABLES` are set."""
    return all(os.environ.get(name) for name in VARIABLES)


class Ranks:
    """This process among the others. Rank 0 writes the run's folder and says what there is to say.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        given_bytes: size of all tensors that this rank has given to :meth:`add` and :meth:`gather`, which is all that a step
            exchanges.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.given_bytes = 0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all ranks, in place; every rank gets the same bits."""
        self.given_bytes += tensor.numel() * tensor.element_size()
        with self.lost():
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape, joined along the last axis in order of rank."""
        self.given_bytes += tensor.numel() * tensor.element_size()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.lost():
            dist.all_gather(parts, tensor)
        return torch.cat(parts, dim=-1)

    def tell(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        values = [value]
        with self.lost():
            dist.broadcast_object_list(values)
        return values[0]

    def bring(self, tensor: Tensor, owner: int) -> Tensor:
        """On rank 0 the owner's tensor; on others the one given. Rank 0 gives one of the same shape and type."""
        if owner == 0 or self.rank not in (0, owner):
            return tensor
        with self.lost():
            if self.leads:
                tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                dist.recv(tensor, owner)
            else:
                dist.send(tensor.contiguous(), 0)
        return tensor

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """Run a block that exchanges nothing. If it fails on one rank it ends on all, and rank 0 says why, in one line."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        said: list[str | None] = [None] * self.size
        with self.lost():
            dist.all_gather_object(said, None if error is None else str(error) or type(error).__name__)
        if error is not None and self.leads:
            raise error
        for rank, message in enumerate(said):
            if message is not None:
                if self.leads:
                    raise TrainingError(f"rank {rank}: {message}")
                raise SystemExit(2)

    @contextmanager
    def lost(self) -> Generator[None, None, None]:
        """One line for the many ways in which torch reports that another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank} of {self.size} lost the others ({str(error).splitlines()[0][:200]}): one of them ended or "
                "cannot be reached; start the job again to resume from the last checkpoint"
            ) from error


@contextmanager
def joined(device: torch.device) -> Generator[Ranks, None, None]:
    """Meet the other ranks, in the process group that is there already (Ray Train makes one) or in one for this job.

    Those but rank 0 print nothing, except errors of their own.

    Raises:
        TrainingError: a variable is wrong, or the others cannot be reached.
    """
    there_already = dist.is_initialized()
    if there_already:
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
    else:
        try:
            ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        except ValueError as error:
            raise TrainingError(f"RANK and WORLD_SIZE should be whole numbers: {error}") from error
        with ranks.lost():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    console.quiet = not ranks.leads
    try:
        yield ranks
    finally:
        console.quiet = False
        if not there_already:
            dist.destroy_process_group()
