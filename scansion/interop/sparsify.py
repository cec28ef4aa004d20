"""sparsify (eai-sparsify): a folder named after its hook point, with ``cfg.json`` and ``sae.safetensors``; TopK SAEs."""

from __future__ import annotations

from pathlib import Path

from scansion.errors import ConfigError
from scansion.interop.weights import ForeignSAE, read_safetensors, read_settings, standard_weights, take
from scansion.sae import TopKConfig

NAME = "sparsify"
_WEIGHTS = "sae.safetensors"


def fits(path: Path) -> bool:
    """Whether a folder is of this library."""
    return (path / "cfg.json").is_file() and (path / _WEIGHTS).is_file()


def read(path: Path) -> ForeignSAE:
    """Read a folder.

    Raises:
        ConfigError: a transcoder, a skip connection, or another activation than TopK.
        DamagedError: the weights cannot be read.
    """
    cfg = read_settings(path / "cfg.json")
    for name, value in (("activation", "topk"), ("transcode", False), ("skip_connection", False)):
        if cfg.get(name, value) != value:
            raise ConfigError(f"{path}: {name} is {cfg[name]!r}; Scansion reads {NAME} SAEs where it is {value!r}")
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = take(read_safetensors(path / _WEIGHTS), names, path / _WEIGHTS)
    k = cfg.get("k")
    if not isinstance(k, int):
        raise ConfigError(f"{path / 'cfg.json'} does not say k")
    weights = standard_weights(W_enc.T, b_enc, W_dec, b_dec, subtracts_bias=True)
    return ForeignSAE(NAME, TopKConfig(d_sae=len(b_enc), k=k), weights, hook_point=path.resolve().name)
