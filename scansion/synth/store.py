"""Planted activations on disk, as an ordinary activation store: training and evaluation read them like a model's."""

from __future__ import annotations

from pathlib import Path

import torch

from scansion.activations import ActivationStore
from scansion.activations.filling import intact_store, missing_shards, place_of, reopen, resumed_settings, seal
from scansion.activations.shard import SIDE_BYTES, ShardBuffer
from scansion.activations.store import PLANTED, StoreIdentity
from scansion.device import DTYPES
from scansion.files import fingerprint, one_line_io_errors, require_free_space, require_writable
from scansion.locks import only_writer
from scansion.progress import progress
from scansion.synth.config import SynthConfig
from scansion.synth.dictionary import PlantedDictionary
from scansion.synth.generation import BLOCK_CONTEXTS, PlantedData, Split

MODEL = PLANTED
HOOK_POINT = "planted"
_SHARD_BLOCKS = 8


def planted_identity(config: SynthConfig, split: Split) -> StoreIdentity:
    """The identity of a planted store. Its revision is the world's fingerprint, so an SAE of another world is refused."""
    world = config.model_dump(mode="json")
    n_contexts = config.n_contexts if split == "train" else config.n_held_out_contexts
    return StoreIdentity(
        model=MODEL,
        model_revision=fingerprint(world),
        model_dtype="float32",
        hook_point=HOOK_POINT,
        d_in=config.d_in,
        context_length=config.context_length,
        n_contexts=n_contexts,
        contexts=fingerprint({"world": world, "split": split}),
        corpus={"source": MODEL, "world": world},
        split=split,
        dtype=config.dtype,
    )


def plant_store(planted: PlantedDictionary, split: Split, folder: Path) -> ActivationStore:
    """Generate a split into ``folder``, or reuse it. Generation that was killed resumes and ends with the same bytes.

    Position 0 is like any other position here: train and evaluate with ``use_position_0``.

    Args:
        planted: the true features.
        split: train or held_out.
        folder: holds only this store.

    Raises:
        StoreError: the folder holds another store.
        ScansionError: the folder is not writable or the disk is too small.
    """
    identity = planted_identity(planted.config, split)
    if store := intact_store(folder, identity):
        return store
    require_writable(folder)
    require_free_space(folder, planted_bytes(planted.config, split), "the synthetic store")
    data = PlantedData(planted, split)
    per_shard = _SHARD_BLOCKS * BLOCK_CONTEXTS
    n_tokens = identity.n_contexts * identity.context_length
    with one_line_io_errors(f"generating into {folder}"), only_writer(folder, "generating", wait=True):
        if store := intact_store(folder, identity):  # another process finished while this one waited
            return store
        reopen(folder, identity)
        resumed_settings(folder, identity, {})
        missing = missing_shards(folder, identity, per_shard)
        done = n_tokens - sum(stop - start for start, stop in missing.values()) * identity.context_length
        with progress(f"generate {split}", n_tokens, "tokens", done) as advance:
            for path, (start, stop) in missing.items():
                _shard(data, start, stop).write(path, place_of(identity, path))
                advance((stop - start) * identity.context_length)
        return seal(folder, identity, n_tokens, per_shard)


def planted_bytes(config: SynthConfig, split: Split) -> int:
    """Approximate bytes of a store on disk."""
    identity = planted_identity(config, split)
    return identity.n_contexts * config.context_length * (config.d_in * DTYPES[config.dtype].itemsize + SIDE_BYTES)


def _shard(data: PlantedData, start: int, stop: int) -> ShardBuffer:
    config = data.planted.config
    first, last = start // BLOCK_CONTEXTS, -(-stop // BLOCK_CONTEXTS)
    x = torch.cat([data.block(index).x for index in range(first, last)], dim=1)
    buffer = ShardBuffer.empty(config.context_length, stop - start, config.d_in, config.dtype)
    buffer.acts.copy_(x)
    buffer.valid.fill_(True)
    # Each context is a document of its own. There is no text, so token ids stay 0.
    buffer.doc_ids.copy_(torch.arange(start, stop).expand(config.context_length, -1))
    buffer.doc_positions.copy_(torch.arange(config.context_length)[:, None].expand(-1, stop - start))
    return buffer
