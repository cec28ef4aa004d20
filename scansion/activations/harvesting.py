"""Harvest: run the LM over contexts once and store the activations at the hook point, shard by shard, resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scansion.activations.filling import (
    finished_store,
    missing_shards,
    resumed_settings,
    seal,
)
from scansion.activations.shard import SIDE_BYTES, FinishedShard, ShardBuffer
from scansion.activations.store import ActivationStore, StoreIdentity
from scansion.corpus import Contexts
from scansion.device import DTYPES, resolve_dtype
from scansion.errors import StoreError
from scansion.files import human_bytes, one_line_io_errors, require_free_space, require_writable
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.locks import only_writer
from scansion.progress import Advance, progress, say

_WRITERS = 2
"""Shards written at once: writing one to disk takes about twice as long as computing it on a fast GPU."""


class HarvestConfig(BaseModel):
    """How activations are computed and laid out on disk. Only ``dtype`` changes what the store holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field(default="bfloat16", description="Stored type: bfloat16, float16 or float32.")
    lm_batch_size: int = Field(default=16, ge=1, description="Contexts the language model reads at once.")
    shard_bytes: int = Field(default=64_000_000, ge=1, description="Approximate size of a shard, the unit of resuming.")


@dataclass(frozen=True)
class HarvestPlan:
    """A harvest that has not started: what it will store and where.

    Attributes:
        identity: what the store will hold.
        folder: the store's folder.
        contexts: the text, in the order of the store's context axis.
        config: layout and batch size.
    """

    identity: StoreIdentity
    folder: Path
    contexts: Contexts
    config: HarvestConfig

    @property
    def n_bytes(self) -> int:
        """Bytes of the finished store on disk."""
        per_token = self.identity.d_in * DTYPES[self.config.dtype].itemsize + SIDE_BYTES
        return self.identity.n_contexts * self.identity.context_length * per_token

    def finished_store(self) -> ActivationStore | None:
        """The store this plan would make, if it is finished already, or None.

        Raises:
            StoreError: the folder holds a finished store of something else.
        """
        return finished_store(self.folder, self.identity)

    def check(self) -> None:
        """Raise unless the harvest can finish: a known type, a writable folder, enough disk space."""
        resolve_dtype(self.config.dtype)
        require_writable(self.folder)
        written = sum(file.stat().st_size for file in self.folder.glob("shard-*.safetensors"))
        require_free_space(self.folder, max(self.n_bytes - written, 0), "the activation store")


def harvest(plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> ActivationStore:
    """Return the store of ``plan``, computing the shards that are not on disk yet.

    A harvest that was killed resumes at the first missing shard and ends with the same bytes. If another process is
    harvesting into the folder, this one waits.

    Args:
        plan: what to compute and where.
        load_lm: called only if something must be computed.

    Raises:
        StoreError: the folder holds other activations.
        ScansionError: the folder is not writable or the disk is too small.
    """
    if store := plan.finished_store():
        say(f"reusing {store.manifest.n_tokens:,} activations in {plan.folder}")
        return store
    plan.check()
    with one_line_io_errors(f"harvesting into {plan.folder}"), only_writer(plan.folder, "harvesting", wait=True):
        if plan.finished_store() is None:  # another process may have finished while we waited
            _fill(plan, load_lm)
    return ActivationStore(plan.folder)


def _fill(plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> None:
    # An interrupted harvest resumes with the layout it was started with.
    settings = resumed_settings(plan.folder, plan.identity, plan.config.model_dump(mode="json"))
    config = HarvestConfig.model_validate(settings)
    length, d_in, n_contexts = plan.identity.context_length, plan.identity.d_in, plan.identity.n_contexts
    per_shard = max(1, config.shard_bytes // (length * d_in * DTYPES[config.dtype].itemsize))
    n_tokens = plan.contexts.n_tokens
    missing = missing_shards(plan.folder, n_contexts, per_shard)
    if missing:
        say(f"harvesting {n_tokens:,} tokens ({human_bytes(plan.n_bytes)}) into {plan.folder}")
        hook_point = HookPoint.parse(plan.identity.hook_point)
        lm = load_lm()
        to_do = sum(stop - start for start, stop in missing.values())
        done = n_tokens * (1 - to_do / n_contexts)
        on_gpu = lm.device.type == "cuda"
        with (
            progress(f"harvest {plan.identity.split}", n_tokens, "tokens", done) as advance,
            _Writer(in_threads=on_gpu) as writer,
        ):
            for path, (start, stop) in missing.items():
                contexts = plan.contexts[start:stop]
                buffer = ShardBuffer.empty(length, len(contexts), d_in, config.dtype, lm.device if on_gpu else None)
                _fill_shard(buffer, contexts, lm, hook_point, config.lm_batch_size, on_gpu, advance)
                writer.write(buffer.finished(), path, f"{hook_point} of {lm.facts.name}", config.dtype)
    seal(plan.folder, plan.identity, n_tokens, per_shard)


def _fill_shard(
    buffer: ShardBuffer,
    contexts: Contexts,
    lm: LanguageModel,
    hook_point: HookPoint,
    lm_batch_size: int,
    by_length: bool,
    advance: Advance,
) -> None:
    """Run the LM over a shard's contexts.

    Args:
        buffer: filled in place, on its activations' device.
        contexts: those of the shard.
        lm: the model.
        hook_point: where to read the activations.
        lm_batch_size: contexts in a batch.
        by_length: batch contexts of similar length, without their common padding. That saves work where contexts are
            padded, and changes activations by no more than rounding.
        advance: told of every batch.
    """
    order = torch.arange(len(contexts))
    lengths = contexts.valid.sum(dim=1)
    if by_length and int(lengths.min()) < contexts.length:
        order = lengths.argsort(descending=True, stable=True)
    for start in range(0, len(order), lm_batch_size):
        members = order[start : start + lm_batch_size]
        batch = contexts[members]
        batch = batch.without_common_padding() if by_length else batch
        acts = activations_at(lm, hook_point, batch).to(buffer.acts.device)
        row, column = batch.valid.nonzero(as_tuple=True)
        # A token is stored at its position, wherever padding has put it in the batch.
        cell = (batch.positions[row, column].long(), members[row])
        there = tuple(_send(index, acts.device) for index in (*cell, row, column))
        buffer.acts[there[:2]] = acts[there[2:]].to(buffer.acts.dtype)
        buffer.tokens[cell] = batch.tokens[row, column]
        buffer.doc_ids[cell] = batch.doc_ids[row, column]
        buffer.doc_positions[cell] = batch.doc_positions[row, column]
        buffer.valid[cell] = True
        advance(len(row))


def _send(index: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that Python does not wait for."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


class _Writer:
    """Checks and writes shards, in threads while a GPU computes the next ones."""

    def __init__(self, in_threads: bool) -> None:
        self._threads = ThreadPoolExecutor(_WRITERS) if in_threads else None
        self._pending: deque[Future[None]] = deque()

    def write(self, shard: FinishedShard, path: Path, of: str, dtype: str) -> None:
        if self._threads is None:
            _check_and_write(shard, path, of, dtype)
            return
        self._pending.append(self._threads.submit(_check_and_write, shard, path, of, dtype))
        while len(self._pending) > _WRITERS:  # bounds the memory of shards that wait for the disk
            self._pending.popleft().result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._threads is None:
            return
        self._threads.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for each in self._pending:
                each.result()


def _check_and_write(shard: FinishedShard, path: Path, of: str, dtype: str) -> None:
    if not shard.is_finite:
        raise StoreError(
            f"the activations at {of} are not all finite in {dtype}; store float32, or run the model in float32"
        )
    shard.write(path)
