"""Which model it is: decided by the revision (a hub commit or a hash of local files), never by the name the user typed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import xxhash

from scansion.progress import progress

BUNDLED_MODEL = "smollm2-135m"
BUNDLED_GPT2 = "gpt2-sotu"
"""A small GPT-2 that is trained on the bundled text on the user's machine."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What the hub's client calls the folder it downloads a commit to.
_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$")
# A commit, the fingerprint of a synthetic world, or `xxh3:WEIGHTS+CONFIG`; earlier versions wrote no `+CONFIG`.
_HASH = re.compile(r"(?P<content>(?:xxh3:)?[0-9a-f]{32}|[0-9a-f]{40})(?:\+(?P<config>[0-9a-f]{16}))?")
# These change when the same model is saved again, and no activation depends on them.
_NOT_CONTENT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True)
class ModelId:
    """A model's name, which people read, and its revision, by which models are compared.

    Attributes:
        name: as the user typed it: a hub name, a path, or the bundled model's name.
        revision: the hub's commit, or ``xxh3:`` and a fingerprint of local files.

    Example:
        >>> ModelId("./gemma", "xxh3:" + "0" * 32).same_as(ModelId("/models/gemma", "xxh3:" + "0" * 32))
        True
    """

    name: str
    revision: str

    def same_as(self, other: ModelId) -> bool:
        """True if both are the same model. Names count only where a revision is not a hash."""
        ours, theirs = self._canonical, other._canonical
        here, there = _HASH.fullmatch(ours.revision), _HASH.fullmatch(theirs.revision)
        if here is None or there is None:
            return ours == theirs
        # Earlier versions hashed the weights only: without the hash of a configuration, weights decide.
        configs = {here["config"], there["config"]} - {None}
        return here["content"] == there["content"] and len(configs) < 2

    @property
    def key(self) -> tuple[str, str]:
        """Name and revision for use in a fingerprint; two paths of the same files give one key."""
        model = self._canonical
        local = model.revision.startswith("xxh3:") and model.name != BUNDLED_MODEL
        return (model.revision if local else model.name, model.revision)

    @property
    def commit(self) -> str | None:
        """The hub's commit, to load exactly this model again; None for local files."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None

    @property
    def _canonical(self) -> ModelId:
        """A folder of the hub's cache is the hub's model at that commit."""
        match = _SNAPSHOT.search(self.name)
        return ModelId(match[1].replace("--", "/"), match[2]) if match else self

    def __str__(self) -> str:
        return f"{self.name} {self.revision}"


def local_revision(location: str, with_config: bool = True) -> str | None:
    """The revision of a folder on disk: the commit it was downloaded as, else a fingerprint of weights and config.

    An edited folder gets another fingerprint, so that it is never mistaken for the old one.

    Args:
        location: a folder, or a hub name, for which the result is None.
        with_config: False for the bundled model, whose config.json is written by the installed version of transformers.
    """
    folder = Path(location)
    if not folder.is_dir():
        return None
    if snapshot := _SNAPSHOT.search(str(folder.resolve())):
        return snapshot[2]
    weights = f"xxh3:{hash_of_files(sorted(file for glob in _WEIGHTS for file in folder.glob(glob)))}"
    return f"{weights}+{_hash_config(folder / 'config.json')}" if with_config else weights


def hash_of_files(files: list[Path]) -> str:
    """A 32-digit fingerprint of the files' names and bytes."""
    digest = xxhash.xxh3_128()
    with progress("fingerprint weights", sum(file.stat().st_size for file in files), "bytes") as advance:
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
                    advance(len(block))
    return digest.hexdigest()


def _hash_config(path: Path) -> str:
    config = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in _NOT_CONTENT}
    return xxhash.xxh3_64_hexdigest(json.dumps(config, sort_keys=True).encode())
