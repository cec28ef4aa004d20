"""Harvest: run the LM over contexts once and store the activations at its hook points, shard by shard, resumable.

Shards depend on nothing but the plan; within a shard, what is computed is kept in parts, see :mod:`.parts`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from scansion.activations.filling import (
    forget_plan,
    intact_store,
    missing_shards,
    place_of,
    reopen,
    resumed_settings,
    seal,
)
from scansion.activations.harvest_plan import HarvestConfig, HarvestPlan, check_harvests
from scansion.activations.parts import Parts
from scansion.activations.shard import FinishedShard, ShardBuffer
from scansion.activations.store import ActivationStore
from scansion.corpus import Contexts
from scansion.device import DTYPES
from scansion.errors import ConfigError, ScansionError, StoreError
from scansion.files import human_bytes, one_line_io_errors
from scansion.lm import HookPoint, LanguageModel, activations_at_each, check_parts
from scansion.locks import only_writer
from scansion.progress import Advance, progress, say
from scansion.remote import origin

_WRITERS = 2
"""Shards written at once: writing one to disk takes about twice as long as computing it on a fast GPU."""


def harvest(plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> ActivationStore:
    """Return the store of ``plan``, computing the shards that are not on disk yet.

    A harvest that was killed resumes less than 30 seconds before that point and ends with the same bytes. A finished
    store is read and compared with its digests; damaged shards are computed again. If another process is harvesting into
    the folder, this one waits.

    Args:
        plan: what to compute and where.
        load_lm: called only if something must be computed.

    Raises:
        StoreError: the folder holds other activations.
        ScansionError: the folder is not writable or the disk is too small.
    """
    return harvest_together([plan], load_lm)[0]


def harvest_together(
    plans: Sequence[HarvestPlan], load_lm: Callable[[], LanguageModel], compute: ComputeShards | None = None
) -> list[ActivationStore]:
    """Return the stores of plans that differ in their hook points. Each has the bytes that :func:`harvest` alone gives it.

    The LM reads a batch once for all stores that miss it, and no further than their last hook point. Stores whose shards
    hold different numbers of contexts, such as those of another width, take a pass of their own: the batches of a harvest
    end where its shards end, and activations depend on their batch in the last bits.

    Args:
        plans: of one model and one text, each for another hook point and folder.
        load_lm: called only if something must be computed, and ``compute`` is None.
        compute: computes and writes shards elsewhere, see :data:`ComputeShards`; default in this process.

    Raises:
        ConfigError: the plans differ in more than their hook points.
        StoreError: a folder holds other activations.
        ScansionError: a folder is not writable or the disk is too small.
    """
    _require_one_text(plans)
    stores = [intact_store(plan.folder, plan.identity) for plan in plans]
    for store in stores:
        if store is not None:
            say(f"reusing {store.manifest.n_tokens:,} activations in {origin(store.folder) or store.folder}")
    unfinished = [plan for plan, store in zip(plans, stores, strict=True) if store is None]
    check_harvests(unfinished)
    # Always in the same order, so that no two harvests of the same stores wait for each other.
    folders = sorted((plan.folder for plan in unfinished), key=Path.resolve)
    with one_line_io_errors(f"harvesting into {', '.join(map(str, folders))}"), ExitStack() as held:
        for folder in folders:
            held.enter_context(only_writer(folder, "harvesting", wait=True))
        # Another process may have finished some while we waited.
        unfinished = [plan for plan in unfinished if intact_store(plan.folder, plan.identity) is None]
        for plan in unfinished:
            reopen(plan.folder, plan.identity)
        try:
            _fill(unfinished, load_lm, compute)
        except ScansionError:
            for plan in unfinished:
                forget_plan(plan.folder)
            raise
    return [store or ActivationStore(plan.folder) for plan, store in zip(plans, stores, strict=True)]


def _require_one_text(plans: Sequence[HarvestPlan]) -> None:
    first = plans[0].identity
    own = {name: getattr(first, name) for name in ("hook_point", "d_in")}
    for plan in plans[1:]:
        if different := first.differences(plan.identity.model_copy(update=own)):
            raise ConfigError(
                f"{plans[0].folder} and {plan.folder} cannot be harvested together ({'; '.join(different)}); "
                "harvest them one after the other"
            )
    if len({plan.folder.resolve() for plan in plans}) < len(plans):
        raise ConfigError("stores that are harvested together need a folder each")


@dataclass(frozen=True)
class _Unfinished:
    """A store being filled.

    Attributes:
        plan: what it will hold.
        hook_point: where the LM is read.
        config: the layout it was started with.
        per_shard: contexts in a shard.
        missing: (first context, one past the last) -> path of each shard that is not on disk.
    """

    plan: HarvestPlan
    hook_point: HookPoint
    config: HarvestConfig
    per_shard: int
    missing: dict[tuple[int, int], Path]

    @classmethod
    def of(cls, plan: HarvestPlan) -> _Unfinished:
        identity = plan.identity
        # An interrupted harvest resumes with the layout it was started with.
        settings = resumed_settings(plan.folder, identity, plan.config.model_dump(mode="json"))
        config = HarvestConfig.model_validate(settings)
        of_context = identity.context_length * identity.d_in * DTYPES[config.dtype].itemsize
        per_shard = max(1, config.shard_bytes // of_context)
        shards = missing_shards(plan.folder, identity, per_shard)
        missing = {span: path for path, span in shards.items()}
        return cls(plan, HookPoint.parse(identity.hook_point), config, per_shard, missing)

    def parts(self, span: tuple[int, int], batches: str) -> Parts:
        """Of the shard that holds these contexts, whose batches are formed as ``batches`` says."""
        path = self.missing[span]
        return Parts(path, f"{place_of(self.plan.identity, path)} {batches}")


@dataclass(frozen=True)
class ShardJob:
    """The shards of the same contexts in one or more stores, to be computed in one pass of the LM and written.

    Attributes:
        contexts: those of the shards.
    """

    contexts: Contexts
    _stores: Sequence[_Unfinished]
    _span: tuple[int, int]

    @classmethod
    def of(cls, stores: Sequence[_Unfinished], span: tuple[int, int]) -> ShardJob:
        """Of those of the stores, which have one layout, that miss the shard of these contexts."""
        return cls(stores[0].plan.contexts[slice(*span)], [store for store in stores if span in store.missing], span)

    @property
    def hook_points(self) -> list[HookPoint]:
        """Where the LM is read."""
        return [store.hook_point for store in self._stores]

    def alone(self) -> ShardJob:
        """The same job without the rest of the text, of which its contexts are a view: small enough to be sent."""
        contexts, none = self.contexts[torch.arange(len(self.contexts))], self.contexts[torch.arange(0)]
        stores = [replace(store, plan=replace(store.plan, contexts=none)) for store in self._stores]
        return ShardJob(contexts, stores, self._span)

    def run(self, lm: LanguageModel, writer: _Writer, advance: Advance) -> None:
        """Compute and write the shards that are not on disk: an earlier try of this job may have written some."""
        on_gpu = lm.device.type == "cuda"
        stores = [store for store in self._stores if not store.missing[self._span].exists()]
        if not stores:
            advance(self.contexts.n_tokens)
            return
        buffers = {
            store.hook_point: ShardBuffer.empty(
                self.contexts.length,
                len(self.contexts),
                store.plan.identity.d_in,
                store.config.dtype,
                lm.device if on_gpu else None,
                self.contexts.turns is not None,
            )
            for store in stores
        }
        batch_size = stores[0].config.lm_batch_size
        parts = {store.hook_point: store.parts(self._span, f"{batch_size} {on_gpu}") for store in stores}
        _fill_shards(buffers, self.contexts, lm, batch_size, on_gpu, advance, parts)
        for store in stores:
            of = f"{store.hook_point} of {lm.facts.name}"
            path = store.missing[self._span]
            place = place_of(store.plan.identity, path)
            finished = buffers.pop(store.hook_point).finished()
            writer.write(finished, path, place, of, store.config.dtype, parts[store.hook_point])


ComputeShards = Callable[[Sequence[ShardJob], Advance], None]
"""Runs every job, in any order and in any process, and reports tokens that are done."""


def run_jobs(lm: LanguageModel, jobs: Sequence[ShardJob], advance: Advance) -> None:
    """Compute and write the shards of some jobs in this process, one after the other."""
    for hook_point in dict.fromkeys(point for job in jobs for point in job.hook_points):
        check_parts(lm, hook_point)
    with _Writer(in_threads=lm.device.type == "cuda") as writer:
        for job in jobs:
            job.run(lm, writer, advance)


def _fill(plans: Sequence[HarvestPlan], load_lm: Callable[[], LanguageModel], compute: ComputeShards | None) -> None:
    if not plans:
        return
    contexts, split = plans[0].contexts, plans[0].identity.split
    n_tokens = contexts.n_tokens
    stores = [_Unfinished.of(plan) for plan in plans]
    passes: dict[tuple[int, int], list[_Unfinished]] = {}
    for store in stores:
        if store.missing:
            place = origin(store.plan.folder) or store.plan.folder
            say(f"harvesting {n_tokens:,} tokens ({human_bytes(store.plan.n_bytes)}) into {place}")
            passes.setdefault((store.per_shard, store.config.lm_batch_size), []).append(store)
    jobs = [
        ShardJob.of(together, span)
        for together in passes.values()
        for span in sorted({span for store in together for span in store.missing})
    ]
    if jobs:
        run = compute or partial(run_jobs, load_lm())
        to_do = sum(len(job.contexts) for job in jobs)
        done = n_tokens * (len(passes) - to_do / len(contexts))
        with progress(f"harvest {split}", n_tokens * len(passes), "tokens", done) as advance:
            run(jobs, advance)
    for store in stores:
        seal(store.plan.folder, store.plan.identity, n_tokens, store.per_shard)


def _fill_shards(
    buffers: Mapping[HookPoint, ShardBuffer],
    contexts: Contexts,
    lm: LanguageModel,
    lm_batch_size: int,
    by_length: bool,
    advance: Advance,
    parts: Mapping[HookPoint, Parts] | None = None,
) -> None:
    """Run the LM over the contexts of one shard per hook point.

    Args:
        buffers: hook point -> its shard, filled in place, on its activations' device.
        contexts: those of the shards.
        lm: the model.
        lm_batch_size: contexts in a batch.
        by_length: batch contexts of similar length, without their common padding. That saves work where contexts are
            padded, and changes activations by no more than rounding.
        advance: told of every batch.
        parts: hook point -> where what is computed is kept until the shard is whole, and what an interrupted harvest left.
    """
    order = torch.arange(len(contexts))
    lengths = contexts.valid.sum(dim=1)
    if by_length and int(lengths.min()) < contexts.length:
        order = lengths.argsort(descending=True, stable=True)
    batches = [order[start : start + lm_batch_size] for start in range(0, len(order), lm_batch_size)]
    device = next(iter(buffers.values())).acts.device
    n_kept, kept = _kept(parts or {})
    n_taken = 0
    part_begins, in_part = n_kept, list[tuple[Tensor, ...]]()
    for number, members in enumerate(batches):
        batch = contexts[members]
        batch = batch.without_common_padding() if by_length else batch
        row, column = batch.valid.nonzero(as_tuple=True)
        # A token is stored at its position, wherever padding has put it in the batch.
        cell = (batch.positions[row, column].long(), members[row])
        there = tuple(_send(index, device) for index in (*cell, row, column))
        if number < n_kept:
            computed = [kept[hook_point][n_taken : n_taken + len(row)] for hook_point in buffers]
            n_taken += len(row)
        else:
            computed = [acts.to(device)[there[2:]] for acts in activations_at_each(lm, list(buffers), batch)]
            in_part.append(there[:2])
        for buffer, acts in zip(buffers.values(), computed, strict=True):
            buffer.acts[there[:2]] = acts.to(buffer.acts)
            for name, tensor in buffer.of_tokens().items():
                tensor[cell] = getattr(batch, name)[row, column]
            buffer.valid[cell] = True
        advance(len(row))
        if parts and in_part and number + 1 < len(batches) and next(iter(parts.values())).is_due:
            cells = tuple(map(torch.cat, zip(*in_part, strict=True)))
            for hook_point, part in parts.items():
                part.write(part_begins, number + 1, buffers[hook_point].acts[cells].cpu())
            part_begins, in_part = number + 1, []


def _kept(parts: Mapping[HookPoint, Parts]) -> tuple[int, dict[HookPoint, Tensor]]:
    """How many of the first batches of a shard every store has in parts, and their activations [m, d_in]."""
    read = {hook_point: each.read() for hook_point, each in parts.items()}
    n_kept = max(set[int].intersection(*map(set, read.values())), default=0) if read else 0
    if not n_kept:
        return 0, {}
    return n_kept, {
        point: torch.cat([acts for end, acts in each.items() if end <= n_kept]) for point, each in read.items()
    }


def _send(index: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that Python does not wait for."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


class _Writer:
    """Checks and writes shards, in threads while a GPU computes the next ones."""

    def __init__(self, in_threads: bool) -> None:
        self._threads = ThreadPoolExecutor(_WRITERS) if in_threads else None
        self._pending: deque[Future[None]] = deque()

    def write(self, shard: FinishedShard, path: Path, place: str, of: str, dtype: str, parts: Parts) -> None:
        if self._threads is None:
            _check_and_write(shard, path, place, of, dtype, parts)
            return
        self._pending.append(self._threads.submit(_check_and_write, shard, path, place, of, dtype, parts))
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


def _check_and_write(shard: FinishedShard, path: Path, place: str, of: str, dtype: str, parts: Parts) -> None:
    if not shard.is_finite:
        raise StoreError(
            f"the activations at {of} are not all finite in {dtype}; store float32, or run the model in float32"
        )
    shard.write(path, place)
    parts.remove()
