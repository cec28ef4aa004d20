"""Harvest: run the LM over contexts once and store the activations at the hook point, shard by shard, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from scansion.activations.filling import (
    finished_store,
    missing_shards,
    resumed_settings,
    seal,
)
from scansion.activations.shard import SIDE_BYTES, ShardBuffer
from scansion.activations.store import ActivationStore, StoreIdentity
from scansion.corpus import Contexts
from scansion.device import DTYPES, resolve_dtype
from scansion.errors import StoreError
from scansion.files import human_bytes, one_line_io_errors, require_free_space, require_writable
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.locks import only_writer
from scansion.progress import Advance, progress, say


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
        with progress(f"harvest {plan.identity.split}", n_tokens, "tokens", done) as advance:
            for path, (start, stop) in missing.items():
                _compute_shard(plan.contexts[start:stop], lm, hook_point, config, d_in, advance).write(path)
    seal(plan.folder, plan.identity, n_tokens, per_shard)


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
        # A token is stored at its position, wherever padding has put it in the batch.
        cell = (batch.positions[row, column].long(), row + start)
        buffer.acts[cell] = acts[row, column].to(buffer.acts.dtype)
        buffer.tokens[cell] = batch.tokens[row, column]
        buffer.doc_ids[cell] = batch.doc_ids[row, column]
        buffer.doc_positions[cell] = batch.doc_positions[row, column]
        buffer.valid[cell] = True
        advance(len(row))
    if not bool(torch.isfinite(buffer.acts).all()):
        raise StoreError(
            f"the activations at {hook_point} of {lm.facts.name} are not all finite in {config.dtype}; "
            "store float32, or run the model in float32"
        )
    return buffer
