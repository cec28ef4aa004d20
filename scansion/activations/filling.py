"""Fill a store's folder: shard by shard, resumable; the manifest is written last."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scansion.activations.parts import PREFIX
from scansion.activations.shard import Shard, written_digest, written_for
from scansion.activations.store import MANIFEST, PLAN, SHARD_NAME, ActivationStore, StoreIdentity, StoreManifest
from scansion.errors import DamagedError, StoreError
from scansion.files import remove_leftovers
from scansion.progress import say
from scansion.records import read_json, write_json


def finished_store(folder: Path, identity: StoreIdentity) -> ActivationStore | None:
    """The finished store of ``identity`` in ``folder``, or None. Its shards are not read yet.

    Raises:
        StoreError: the folder holds a finished store of something else.
        DamagedError: its manifest is damaged, or a shard is missing.
    """
    if not (folder / MANIFEST).exists():
        return None
    store = ActivationStore(folder)
    _require_same(store.identity, identity, folder)
    return store


def intact_store(folder: Path, identity: StoreIdentity) -> ActivationStore | None:
    """The finished store of ``identity`` in ``folder`` if every byte is as it was written, else None.

    Raises:
        StoreError: the folder holds a finished store of something else.
    """
    try:
        store = finished_store(folder, identity)
    except DamagedError:
        return None
    return store if store is not None and not store.damaged() else None


def reopen(folder: Path, identity: StoreIdentity) -> None:
    """Make a damaged store an unfinished one: without a manifest and without its damaged shards, each named in a line."""
    try:
        store = finished_store(folder, identity)
        for path, why in store.damaged() if store else []:
            say(f"{why}; computing it again")
            path.unlink(missing_ok=True)
    except DamagedError as error:
        say(f"{error}; checking every shard")
    (folder / MANIFEST).unlink(missing_ok=True)


def resumed_settings(folder: Path, identity: StoreIdentity, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the plan of a new store and return ``settings``; if an interrupted one is there, return its settings.

    Raises:
        StoreError: the folder holds an unfinished store of something else.
    """
    remove_leftovers(folder)
    path = folder / PLAN
    if path.exists():
        try:
            written = read_json(path)
            identity_there = StoreIdentity.model_validate(written["identity"])
            config: dict[str, Any] = written["config"]
        except (DamagedError, ValidationError, KeyError, TypeError) as error:
            raise DamagedError(f"{path} is damaged; delete {folder} and harvest again") from error
        _require_same(identity_there, identity, folder)
        return config
    write_json(path, {"identity": identity.model_dump(mode="json"), "config": settings})
    return settings


def forget_plan(folder: Path) -> None:
    """Delete the plan of a store of which nothing was computed, so that the folder can take another one."""
    if not any(folder.glob(SHARD_NAME.format("*"))) and not any(folder.glob(f"{PREFIX}*")):
        (folder / PLAN).unlink(missing_ok=True)


def place_of(identity: StoreIdentity, path: Path) -> str:
    """What a shard says of itself: its store's key and its own name."""
    return f"{identity.key} {path.name}"


def missing_shards(folder: Path, identity: StoreIdentity, contexts_per_shard: int) -> dict[Path, tuple[int, int]]:
    """The shards that are not on disk yet: path -> (first context, one past the last).

    Those that are there are read and checked; one that is damaged, or of another store or place, is deleted and counts as
    missing.
    """
    n_contexts = identity.n_contexts
    missing: dict[Path, tuple[int, int]] = {}
    for index, path in enumerate(_shard_paths(folder, n_contexts, contexts_per_shard)):
        start, stop = index * contexts_per_shard, min((index + 1) * contexts_per_shard, n_contexts)
        if path.exists() and not _is_whole(path, identity, stop - start):
            path.unlink()
        if not path.exists():
            missing[path] = (start, stop)
    return missing


def _is_whole(path: Path, identity: StoreIdentity, n_contexts: int) -> bool:
    try:
        digest, place = written_digest(path), written_for(path)
        # Earlier versions wrote no place.
        if place not in ("", place_of(identity, path)):
            raise DamagedError(f"{path} is not of this store, or not at this place of it")
        Shard(path, identity.shard_facts(digest, n_contexts)).verify()
    except DamagedError as error:
        say(f"{error}; computing it again")
        return False
    return True


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
        shards={path.name: written_digest(path) for path in paths},
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    for part in folder.glob(f"{PREFIX}*"):  # of a shard that was written just before the harvest was killed
        part.unlink(missing_ok=True)
    return ActivationStore(folder)


def _shard_paths(folder: Path, n_contexts: int, contexts_per_shard: int) -> list[Path]:
    return [folder / SHARD_NAME.format(f"{index:05d}") for index in range(math.ceil(n_contexts / contexts_per_shard))]


def _require_same(written: StoreIdentity, wanted: StoreIdentity, folder: Path) -> None:
    if different := written.differences(wanted):
        raise StoreError(
            f"{folder} holds other activations ({'; '.join(different)}); choose another folder or delete it"
        )
