"""GGUF files: their header is read in a moment; their weights are de-quantised once and kept as an ordinary folder."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from scansion.assets import cache_dir
from scansion.errors import DamagedError, ModelError
from scansion.files import atomic_folder, human_bytes, require_free_space
from scansion.lm.identity import hash_of_files
from scansion.lm.loading_bars import loading
from scansion.lm.weights import require_all_weights
from scansion.locks import only_writer
from scansion.progress import say
from scansion.records import read_object, write_json

KEPT_MODELS = 3
"""Converted models that are kept; those that were not used for the longest time go first."""
RECORD = "scansion.json"
"""The file in a folder of ours that holds the digests of the others."""
# Sizes of a value by its type, in the order of the format's specification; strings and arrays have none.
_SIZES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 8


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
        n_layers: number of blocks; None if it does not say.
        n_parameters: numbers in all its tensors.
    """

    n_layers: int | None
    n_parameters: int


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file in well under a second: vocabularies, which are most of it, are skipped.

    Raises:
        ModelError: the file is no GGUF file, or its header is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            return _Header(raw).read()
    except (OSError, struct.error, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as GGUF ({error}); download it again") from error


class _Header:
    """A header being read, see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    def __init__(self, raw: mmap.mmap) -> None:
        self._raw = raw
        self._at = 0

    def read(self) -> GgufHeader:
        if self._raw[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, n_tensors, n_values = self._number("<I"), self._number("<Q"), self._number("<Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}; expected 2 or 3, little-endian")
        values = {self._text(): self._value(self._number("<I")) for _ in range(n_values)}
        n_parameters = 0
        for _ in range(n_tensors):
            self._text()
            n_dims = self._number("<I")
            if n_dims > _MOST_DIMS:
                raise ValueError(f"a tensor has {n_dims} dimensions")
            n_parameters += math.prod(self._number("<Q") for _ in range(n_dims))
            self._skip(struct.calcsize("<IQ"))  # its type, and where it begins
        n_layers = values.get(f"{values.get('general.architecture')}.block_count")
        return GgufHeader(n_layers if isinstance(n_layers, int) else None, n_parameters)

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(kind, self._raw, self._at)
        self._at += struct.calcsize(kind)
        return value

    def _text(self) -> str:
        return self._skip(self._number("<Q")).decode("utf-8")

    def _skip(self, n_bytes: int) -> bytes:
        if n_bytes > len(self._raw) - self._at:
            raise ValueError("it is cut short")
        start, self._at = self._at, self._at + n_bytes
        return self._raw[start : self._at]

    def _value(self, kind: int) -> Any:
        """A number or text; None for an array."""
        if kind in _SIZES:
            return self._number(_SIZES[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        if inner in _SIZES:
            self._skip(count * struct.calcsize(_SIZES[inner]))
            return None
        for _ in range(count):
            if inner == _STRING:
                self._skip(self._number("<Q"))
            else:
                self._value(inner)
        return None


def converted(gguf: Path, revision: str) -> Path:
    """The folder in the cache that holds a GGUF file's model in float32; made on first use, which takes a minute or more.

    Each of its files is compared with its digest, once per process; a damaged folder is made again.

    Args:
        gguf: the file.
        revision: its fingerprint, which names the folder.

    Raises:
        ModelError: the file cannot be read as a model.
        ScansionError: the disk is too small.
    """
    folder = cache_dir() / "models" / f"gguf-{revision.rpartition(':')[2]}"
    if not _is_whole(folder):
        needed = 4 * read_header(gguf).n_parameters
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(folder.parent, "de-quantising", wait=True):
            if not _is_whole(folder):  # another process may have finished while we waited
                require_free_space(folder.parent, needed, f"the model {gguf.name} in float32")
                say(f"converting {gguf} to float32, once: {human_bytes(needed)} in {folder}")
                dequantise(gguf, folder)
                _remove_oldest(folder)
    with suppress(OSError):
        os.utime(folder / RECORD)  # used last
    return folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to ``folder``, as transformers writes them, in float32."""
    import transformers

    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with loading(str(gguf)):
        say(f"reading the vocabulary of {gguf.name}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        say(f"reading the weights of {gguf.name}")
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True
        )
        quantised, found = loaded
        require_all_weights(str(gguf), quantised, found)
        config = quantised.config
        # transformers refuses to save a model that says it is quantised; these weights no longer are.
        delattr(config, "quantization_config")
        plain = type(quantised)(config)
        plain.load_state_dict(quantised.state_dict())
        with atomic_folder(folder) as temporary:
            plain.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            names = sorted(path.name for path in temporary.iterdir())
            write_json(temporary / RECORD, {"files": {name: hash_of_files([temporary / name]) for name in names}})


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is there and what was written; says in a line if it is damaged."""
    if not folder.exists():
        return False
    damage = damage_in(folder)
    if damage:
        say(f"{damage}; converting the model again")
    return not damage


def damage_in(folder: Path) -> str:
    """What differs from the digests in a model's folder, in one line; empty if nothing does."""
    stats = tuple((path.name, path.stat().st_size, path.stat().st_ctime_ns) for path in sorted(folder.iterdir()))
    return _damage(folder, tuple(stat for stat in stats if stat[0] != RECORD))


@cache
def _damage(folder: Path, _stats: tuple[tuple[str, int, int], ...]) -> str:
    """What is wrong with a folder, read again when a file in it changes; empty if nothing is."""
    try:
        digests = read_object(folder / RECORD)["files"]
        wrong = [name for name, digest in digests.items() if hash_of_files([folder / name]) != digest]
    except (DamagedError, OSError, KeyError, AttributeError) as error:
        return f"{folder} is damaged ({' '.join(str(error).split())})"
    return f"{folder / wrong[0]} is damaged" if wrong else ""


def _remove_oldest(newest: Path) -> None:
    others = [folder for folder in newest.parent.glob("gguf-*") if folder != newest and (folder / RECORD).exists()]
    for folder in sorted(others, key=lambda each: -(each / RECORD).stat().st_mtime_ns)[KEPT_MODELS - 1 :]:
        say(f"removing {folder}, which was not used for the longest time")
        shutil.rmtree(folder, ignore_errors=True)
