"""Fill a store's folder: shard by shard, resumable after every shard; the manifest is written last."""

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
    """The finished store of ``identity`` in ``folder``, or None.

    Raises:
        StoreError: the folder holds a finished store of something else.
    """
    if not (folder / MANIFEST).exists():
        return None
    store = ActivationStore(folder)
    _require_same(store.identity, identity, folder)
    return store


def resumed_settings(folder: Path, identity: StoreIdentity, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the plan of a new store and return ``settings``; if an interrupted one is there, return its settings.

    Raises:
        StoreError: the folder holds an unfinished store of something else.
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
    """The shards that are not on disk yet: path -> (first context, one past the last)."""
    return {
        path: (index * contexts_per_shard, min((index + 1) * contexts_per_shard, n_contexts))
        for index, path in enumerate(_shard_paths(folder, n_contexts, contexts_per_shard))
        if not path.exists()
    }


def seal(folder: Path, identity: StoreIdentity, n_tokens: int, contexts_per_shard: int) -> ActivationStore:
    """Write the manifest, which marks the store as finished, and open the store.

    Args:
        folder: holds every shard.
        identity: what the store holds.
        n_tokens: valid tokens in the whole store.
        contexts_per_shard: contexts in every shard but the last.
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


def _require_same(written: StoreIdentity, wanted: StoreIdentity, folder: Path) -> None:
    if different := written.differences(wanted):
        raise StoreError(
            f"{folder} holds other activations ({'; '.join(different)}); choose another folder or delete it"
        )
