"""Harvest: run the LM over contexts once and keep what passes the hook point, shard by shard, resumable at any moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from scansion.activations.shard import Shard, ShardBuffer
from scansion.activations.store import MANIFEST, ActivationStore, StoreIdentity, StoreManifest
from scansion.corpus import Contexts
from scansion.device import DTYPES, resolve_dtype
from scansion.errors import StoreError
from scansion.files import (
    fingerprint,
    human_bytes,
    one_line_io_errors,
    read_json,
    remove_leftovers,
    require_free_space,
    require_writable,
    write_json,
)
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.progress import Advance, progress, say

PLAN = "plan.json"
_SIDE_BYTES = 4 + 1 + 4 + 4  # token id, validity, document id, document position


class HarvestConfig(BaseModel):
    """How activations are computed and laid out on disk. None of it changes what a store is of, except ``dtype``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field(default="bfloat16", description="Stored type: bfloat16, float16 or float32.")
    lm_batch_size: int = Field(default=16, ge=1, description="Contexts the language model reads at once.")
    shard_bytes: int = Field(default=64_000_000, ge=1, description="Approximate size of a shard, the unit of resuming.")


@dataclass(frozen=True)
class HarvestPlan:
    """A harvest that has not started: what it is of and where it goes.

    Attributes:
        identity: what the store will be of.
        folder: where it will lie.
        contexts: the text, in the order of the store's context axis.
        config: layout and batch size.
    """

    identity: StoreIdentity
    folder: Path
    contexts: Contexts
    config: HarvestConfig

    @property
    def key(self) -> str:
        """Fingerprint of the identity."""
        return fingerprint(self.identity.model_dump(mode="json"))

    @property
    def n_bytes(self) -> int:
        """Disk use of the finished store."""
        per_token = self.identity.d_in * DTYPES[self.config.dtype].itemsize + _SIDE_BYTES
        return self.identity.n_contexts * self.identity.context_length * per_token

    def finished_store(self) -> ActivationStore | None:
        """The store this plan would make, if it is there already.

        Raises:
            StoreError: the folder holds a finished store of something else.
        """
        if not (self.folder / MANIFEST).exists():
            return None
        store = ActivationStore(self.folder)
        if store.manifest.key != self.key:
            raise StoreError(_differences(store.identity, self.identity, self.folder))
        return store

    def check(self) -> None:
        """Raise unless the harvest could run to its end: types, a writable folder, disk space."""
        resolve_dtype(self.config.dtype)
        require_writable(self.folder)
        written = sum(file.stat().st_size for file in self.folder.glob("shard-*.safetensors"))
        require_free_space(self.folder, max(self.n_bytes - written, 0), "the activation store")


def harvest(plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> ActivationStore:
    """Return the store of ``plan``, computing what is not on disk yet.

    A harvest killed at any moment goes on at the first missing shard and ends with the same bytes.

    Args:
        plan: what to compute and where.
        load_lm: called only if something must be computed.

    Raises:
        StoreError: another process is harvesting there, or the folder holds something else.
        ScansionError: the folder is not writable or the disk is too small.
    """
    if store := plan.finished_store():
        say(f"reusing {store.manifest.n_tokens:,} activations in {plan.folder}")
        return store
    plan.check()
    with one_line_io_errors(f"harvesting into {plan.folder}"):
        lock = FileLock(plan.folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                if plan.finished_store() is None:  # another process may have finished while we waited
                    _fill(plan, load_lm)
        except Timeout as error:
            raise StoreError(f"another process is harvesting into {plan.folder}; wait for it to end") from error
    return ActivationStore(plan.folder)


def _fill(plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> None:
    remove_leftovers(plan.folder)
    config = _resumed_config(plan)
    length, d_in, n_contexts = plan.identity.context_length, plan.identity.d_in, plan.identity.n_contexts
    per_shard = max(1, config.shard_bytes // (length * d_in * DTYPES[config.dtype].itemsize))
    n_shards = math.ceil(n_contexts / per_shard)
    paths = [plan.folder / f"shard-{index:05d}.safetensors" for index in range(n_shards)]
    missing = [index for index in range(n_shards) if not paths[index].exists()]
    if missing:
        say(f"harvesting {plan.contexts.n_tokens:,} tokens ({human_bytes(plan.n_bytes)}) into {plan.folder}")
        hook_point = HookPoint.parse(plan.identity.hook_point)
        lm = load_lm()
        done = (n_shards - len(missing)) / n_shards * plan.contexts.n_tokens
        with progress(f"harvest {plan.identity.split}", plan.contexts.n_tokens, "tokens", done) as advance:
            for index in missing:
                contexts = plan.contexts[index * per_shard : (index + 1) * per_shard]
                _compute_shard(contexts, lm, hook_point, config, d_in, advance).write(paths[index])
    manifest = StoreManifest(
        identity=plan.identity,
        key=plan.key,
        n_tokens=plan.contexts.n_tokens,
        shards={path.name: Shard(path).digest for path in paths},
    )
    write_json(plan.folder / MANIFEST, manifest.model_dump(mode="json"))


def _resumed_config(plan: HarvestPlan) -> HarvestConfig:
    """Write the plan down, or go on with the layout of an interrupted harvest of the same thing."""
    path = plan.folder / PLAN
    if path.exists():
        written = read_json(path)
        identity = StoreIdentity.model_validate(written["identity"])
        if identity != plan.identity:
            raise StoreError(_differences(identity, plan.identity, plan.folder))
        return HarvestConfig.model_validate(written["config"])
    write_json(path, {"identity": plan.identity.model_dump(mode="json"), "config": plan.config.model_dump(mode="json")})
    return plan.config


def _compute_shard(
    contexts: Contexts,
    lm: LanguageModel,
    hook_point: HookPoint,
    config: HarvestConfig,
    d_in: int,
    advance: Advance,
) -> ShardBuffer:
    buffer = ShardBuffer.empty(contexts.length, len(contexts), d_in, config.dtype)
    for start in range(0, len(contexts), config.lm_batch_size):
        batch = contexts[start : start + config.lm_batch_size]
        acts = activations_at(lm, hook_point, batch).cpu()
        row, column = batch.valid.nonzero(as_tuple=True)
        # A token goes to the place its position names, wherever padding has put it in the batch.
        place = (batch.positions[row, column].long(), row + start)
        buffer.acts[place] = acts[row, column].to(buffer.acts.dtype)
        buffer.tokens[place] = batch.tokens[row, column]
        buffer.doc_ids[place] = batch.doc_ids[row, column]
        buffer.doc_positions[place] = batch.doc_positions[row, column]
        buffer.valid[place] = True
        advance(len(row))
    if not bool(torch.isfinite(buffer.acts).all()):
        raise StoreError(
            f"the activations at {hook_point} of {lm.facts.name} are not all finite in {config.dtype}; "
            "store float32, or run the model in float32"
        )
    return buffer


def _differences(there: StoreIdentity, wanted: StoreIdentity, folder: Path) -> str:
    old, new = there.model_dump(mode="json"), wanted.model_dump(mode="json")
    parts = [f"{name} is {old[name]!r} there and {new[name]!r} here" for name in new if old[name] != new[name]]
    return f"{folder} holds other activations ({'; '.join(parts)}); choose another folder or delete it"
