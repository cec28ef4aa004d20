"""Upload a finished store to object storage, so that whoever finds it there finds all of it; resumes where it stopped."""

from __future__ import annotations

from pathlib import Path

from scansion.activations.outliers import NORMS, SUMS
from scansion.activations.remote_shard import RemoteFiles, ShardBlocks, positions_file
from scansion.activations.shard import Shard
from scansion.activations.store import MANIFEST, PLAN, SHARD_NAME, ActivationStore, StoreIdentity
from scansion.errors import DamagedError, StoreError
from scansion.progress import progress, say
from scansion.records import write_json
from scansion.remote import Remote


def published_store(url: str, identity: StoreIdentity) -> ActivationStore | None:
    """The finished store of ``identity`` at a URL, or None. Its objects are there and of the right size; they are not read.

    Raises:
        StoreError: another store is there.
    """
    if Remote(url).entry(MANIFEST) is None:
        return None
    try:
        store = ActivationStore(url)
        if different := store.identity.differences(identity):
            raise StoreError(f"{url} holds other activations ({'; '.join(different)}); choose another URL or delete it")
        store.check_sizes()
    except DamagedError as error:
        say(f"{error}; uploading again what is not whole")
        return None
    return store


def bring_unfinished(url: str, folder: Path) -> None:
    """Download what an interrupted upload left at a URL and is not in the folder; the harvest checks it."""
    remote = Remote(url)
    there = remote.files()
    names = [name for name in there if name == PLAN or Path(name).match(SHARD_NAME.format("*"))]
    if PLAN in names:
        for name in names:
            if not (folder / name).exists():
                remote.fetch(name, folder / name, there[name])


def publish(store: ActivationStore, url: str) -> ActivationStore:
    """Upload a finished store on disk: shards, each followed by the digests of its positions, and the manifest last.

    What is there already is not sent again. Before anything of another content is replaced, the manifest is deleted.

    Raises:
        DamagedError: a shard is not what was written.
        ScansionError: the storage does not take it.
    """
    store.outliers.warn(store.folder)  # computes what readers would otherwise read every activation for
    files = RemoteFiles(url, store.folder)
    remote, there = files.remote, files.entries
    if MANIFEST in there and not _is_same_store(url, store):
        remote.delete([MANIFEST])
    if (store.folder / PLAN).exists():
        remote.upload(store.folder / PLAN, PLAN)
    with progress("upload activations", store.n_contexts, "contexts") as advance:
        for shard in store.shards:
            if not _is_there(files, shard):
                file = positions_file(shard.path.name)
                write_json(store.folder / file, ShardBlocks.of(shard).model_dump(mode="json"))
                remote.upload(shard.path, shard.path.name)
                remote.upload(store.folder / file, file)
            advance(shard.n_contexts)
    for name in (NORMS, SUMS, MANIFEST):
        if (store.folder / name).exists():
            remote.upload(store.folder / name, name)
    return ActivationStore(url)


def _is_same_store(url: str, store: ActivationStore) -> bool:
    try:
        return ActivationStore(url).contents == store.contents
    except DamagedError:
        return False


def _is_there(files: RemoteFiles, shard: Shard) -> bool:
    """Whether the storage has the shard: the digests of its positions are uploaded after it."""
    name = shard.path.name
    if name not in files.entries or positions_file(name) not in files.entries:
        return False
    try:
        blocks = files.blocks(name)
    except DamagedError:
        return False
    return blocks.shard == shard.facts.digest and blocks.size == files.entries[name].size
