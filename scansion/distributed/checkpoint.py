"""Checkpoints of several ranks by torch.distributed.checkpoint, as safetensors files with digests and nothing pickled.

Each tensor is saved once, by one of the ranks that have it, under a name that does not depend on the number of ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from scansion.distributed.ranks import Ranks
from scansion.errors import DamagedError, TrainingError
from scansion.progress import say
from scansion.tensor_file import TYPES, load_tensors, save_tensors
from scansion.training.run_folder import RunFolder

_FILE = "{}-{:05d}.safetensors"
Piece = Literal["rank", "features"]
"""What the files of a checkpoint are called: tensors are cut otherwise where features are divided."""


def save(folder: RunFolder, ranks: Ranks, piece: Piece, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
    """Save every rank's pieces as one checkpoint, atomically; called on all ranks.

    Args:
        folder: of the run, on a disk that all ranks share.
        ranks: this rank and the others.
        piece: what is divided.
        tensors: this rank's; names that other ranks have too are saved once.
        counters: the same on every rank.
    """
    with folder.new_checkpoint(counters["step"]) if ranks.leads else nullcontext() as temporary:
        place = Path(ranks.tell(str(temporary)))
        writer = _Writer(
            place, _FILE.format(piece, ranks.rank), lambda digests: folder.write_state(place, counters, digests)
        )
        try:
            with ranks.lost():
                state_dict_saver.save(tensors, storage_writer=writer)
        except CheckpointException as error:
            raise TrainingError(f"{place.parent}: the checkpoint could not be saved: {_reasons(error)}") from error


def load_newest(
    folder: RunFolder, ranks: Ranks, piece: Piece, tensors: Callable[[dict[str, int]], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, int]] | None:
    """Load this rank's pieces of the newest checkpoint that is whole; None if there is none. Called on all ranks.

    Those that are damaged are deleted, and each is reported in a line.

    Args:
        folder: of the run.
        ranks: this rank and the others; perhaps not as many as wrote the checkpoint.
        piece: what is divided.
        tensors: given the counters, what to load, by name; filled in place.
    """
    for path in [Path(each) for each in ranks.tell([str(path) for path in folder.checkpoints()])]:
        try:
            counters, digests = folder.read_state(path)
            if not isinstance(digests, dict):
                raise TrainingError(
                    f"{path} was written by a run without ranks: resume it without torchrun, or delete {path.parent} to "
                    "start again"
                )
            if not all(name.startswith(piece) for name in digests):
                how = "without" if piece == "features" else "with"
                raise TrainingError(
                    f"{path.parent}: the job was started {how} --divide features; go on as it was started, or choose another "
                    "folder"
                )
            wanted = tensors(counters)
            with ranks.lost():
                state_dict_loader.load(wanted, storage_reader=_Reader(path, digests))
            return wanted, counters
        except (DamagedError, CheckpointException) as error:
            reason = str(error) if isinstance(error, DamagedError) else _reasons(error)
            say(f"{reason}; {path} is deleted, and training goes on from the checkpoint before it, if there is one")
            ranks.tell(None)  # all have tried to read it
            if ranks.leads:
                shutil.rmtree(path)
    return None


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {' '.join(str(each[0]).split())[:200]}" for rank, each in error.failures.items())


class _Writer(StorageWriter):
    """Writes a rank's tensors to its file; on rank 0 also what the folder says of itself."""

    def __init__(self, folder: Path, name: str, write_state: Callable[[dict[str, str]], None]) -> None:
        super().__init__()
        self._folder, self._name, self._write_state = folder, name, write_state

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors = {item.index.fqn: cast(Tensor, planner.resolve_data(item)) for item in plan.items}
        written = (self._name, save_tensors(self._folder / self._name, tensors) if tensors else "")
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(item.index, item.tensor_storage_size() or 0, written) for item in plan.items])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._write_state(dict(result.storage_data for of_rank in results for result in of_rank))

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Reader(StorageReader):
    """Reads what :class:`_Writer` wrote, and compares each file that it needs with its digest.

    Args:
        folder: the checkpoint.
        digests: of its files, by name.
    """

    def __init__(self, folder: Path, digests: dict[str, str]) -> None:
        super().__init__()
        self._folder, self._digests = folder, digests
        self._file_of: dict[str, str] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        for name in self._digests:
            with cast(Any, safe_open)(self._folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    view = file.get_slice(key)
                    shape = torch.Size(view.get_shape())
                    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
                    tensors[key] = TensorStorageMetadata(TensorProperties(TYPES[view.get_dtype()]), shape, [chunk])
                    self._file_of[key] = name
        return Metadata(tensors)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        names = dict.fromkeys(self._file_of[item.storage_index.fqn] for item in plan.items)
        for name in names:
            tensors = load_tensors(self._folder / name, self._digests[name])
            for item in plan.items:
                if self._file_of[item.storage_index.fqn] == name:
                    target = planner.resolve_tensor(item)
                    target.copy_(tensors[item.storage_index.fqn])  # pieces are read whole
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
