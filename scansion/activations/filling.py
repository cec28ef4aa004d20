"""Filling a store's folder: shard by shard, resumable at any moment, the manifest last."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scansion.activations.shard import Shard
from scansion.activations.store import MANIFEST, ActivationStore, StoreIdentity, StoreManifest
from scansion.errors import StoreError
from scansion.files import read_json, remove_leftovers, write_json

PLAN = "plan.json"


def finished_store(folder: Path, identity: StoreIdentity) -> ActivationStore | None:
    """The store of ``identity`` in ``folder``, if it is there and whole.

    Raises:
        StoreError: the folder holds a finished store of something else.
    """
    if not (folder / MANIFEST).exists():
        return None
    store = ActivationStore(folder)
    _require_same(store.identity, identity, folder)
    return store


def resumed_settings(folder: Path, identity: StoreIdentity, settings: dict[str, Any]) -> dict[str, Any]:
    """Write down what is about to be filled, or return the settings of an interrupted filling of the same thing.

    Raises:
        StoreError: the folder was begun as something else.
    """
    remove_leftovers(folder)
    path = folder / PLAN
    if path.exists():
        written = read_json(path)
        _require_same(StoreIdentity.model_validate(written["identity"]), identity, folder)
        return written["config"]
    write_json(path, {"identity": identity.model_dump(mode="json"), "config": settings})
    return settings


def missing_shards(folder: Path, n_contexts: int, contexts_per_shard: int) -> dict[Path, tuple[int, int]]:
    """The shards not on disk yet: path -> (first context, one past the last)."""
    return {
        path: (index * contexts_per_shard, min((index + 1) * contexts_per_shard, n_contexts))
        for index, path in enumerate(_shard_paths(folder, n_contexts, contexts_per_shard))
        if not path.exists()
    }


def seal(folder: Path, identity: StoreIdentity, n_tokens: int, contexts_per_shard: int) -> ActivationStore:
    """Write the manifest, whose presence says that the store is whole, and open the store.

    Args:
        folder: holds every shard.
        identity: what the store is of.
        n_tokens: valid tokens in all.
        contexts_per_shard: how the context axis was cut.
    """
    paths = _shard_paths(folder, identity.n_contexts, contexts_per_shard)
    manifest = StoreManifest(
        identity=identity,
        key=identity.key,
        n_tokens=n_tokens,
        shards={path.name: Shard(path).digest for path in paths},
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return ActivationStore(folder)


def _shard_paths(folder: Path, n_contexts: int, contexts_per_shard: int) -> list[Path]:
    return [folder / f"shard-{index:05d}.safetensors" for index in range(math.ceil(n_contexts / contexts_per_shard))]


def _require_same(there: StoreIdentity, wanted: StoreIdentity, folder: Path) -> None:
    if different := there.differences(wanted):
        raise StoreError(
            f"{folder} holds other activations ({'; '.join(different)}); choose another folder or delete it"
        )
