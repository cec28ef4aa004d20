"""Gemma Scope (``params.npz``) and Gemma Scope 2 (``params.safetensors``): JumpReLU SAEs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scansion.errors import ConfigError, DamagedError
from scansion.interop.weights import ForeignSAE, log_of_threshold, read_safetensors, standard_weights, take
from scansion.sae import JumpReluConfig

NAME = "Gemma Scope"
_FILES = ("params.npz", "params.safetensors")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def fits(path: Path) -> bool:
    """Whether a file, or the file in a folder, is of this library."""
    return path.name in _FILES or any((path / name).is_file() for name in _FILES)


def read(path: Path) -> ForeignSAE:
    """Read a file, or the one in a folder.

    Raises:
        ConfigError: it holds other tensors, as transcoders with a skip connection do.
        DamagedError: it cannot be read.
    """
    file = path if path.is_file() else next(path / name for name in _FILES if (path / name).is_file())
    tensors = _from_npz(file) if file.suffix == ".npz" else read_safetensors(file)
    # The second release writes w_enc and w_dec.
    named = {
        {name.lower(): name for name in _TENSORS}.get(name.lower(), name): tensor for name, tensor in tensors.items()
    }
    W_enc, b_enc, W_dec, b_dec, threshold = take(named, _TENSORS, file)
    if b_dec.ndim != 1 or W_enc.shape != W_dec.T.shape:
        raise ConfigError(f"{file} is not an SAE: encoder {list(W_enc.shape)} and decoder {list(W_dec.shape)} differ")
    weights = standard_weights(W_enc, b_enc, W_dec, b_dec, subtracts_bias=False)
    d_sae = W_enc.shape[1]
    return ForeignSAE(
        NAME, JumpReluConfig(d_sae=d_sae), weights | {"log_threshold": log_of_threshold(threshold, d_sae)}
    )


def _from_npz(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # zipfile, numpy and zlib each raise their own for a damaged file
        raise DamagedError(f"{file} is damaged: {' '.join(str(error).split())}") from error
