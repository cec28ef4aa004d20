"""Data inside a page: gzipped, in base64, in elements that a browser neither runs nor shows until a script asks."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

# What the reader in chunks.js knows, and nothing else.
_DTYPES = ("uint8", "uint16", "uint32", "float32")


def packed(data: bytes) -> str:
    """The text of a chunk. No time of writing is in its header, so that the same page comes out the same."""
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")


@dataclass
class Chunks:
    """The chunks of one page, by name."""

    texts: dict[str, str] = field(default_factory=dict[str, str])

    def add_bytes(self, name: str, data: bytes) -> None:
        """Keep some bytes under a name that no other chunk of the page has."""
        if name in self.texts:
            raise ValueError(f"there are two chunks {name!r} in one page")
        self.texts[name] = packed(data)

    def add_json(self, name: str, value: Any) -> None:
        """Keep a JSON value. NaN is refused: callers say None."""
        self.add_bytes(name, json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii"))

    def add_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays, in the safetensors format; NaN survives."""
        wrong = {key: str(one.dtype) for key, one in arrays.items() if str(one.dtype) not in _DTYPES}
        if wrong:
            raise ValueError(f"a page cannot read arrays of type {wrong}; it reads {', '.join(_DTYPES)}")
        self.add_bytes(name, save({key: np.ascontiguousarray(one) for key, one in arrays.items()}))
