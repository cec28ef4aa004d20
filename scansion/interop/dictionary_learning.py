"""dictionary_learning: a folder with ``ae.pt`` and ``config.json``, whose ``dict_class`` says how weights are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from scansion.errors import ConfigError
from scansion.interop.weights import ForeignSAE, log_of_threshold, read_pickled, read_settings, standard_weights, take
from scansion.sae import GatedConfig, JumpReluConfig, ReluConfig, SAEConfig, TopKConfig

NAME = "dictionary_learning"
_WEIGHTS, _SETTINGS = "ae.pt", "config.json"
CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)  # fmt: skip
"""Values of ``dict_class`` that are read."""


def fits(path: Path) -> bool:
    """Whether a folder is of this library."""
    return (path / _WEIGHTS).is_file() and (path / _SETTINGS).is_file()


def read(path: Path) -> ForeignSAE:
    """Read a folder.

    Raises:
        ConfigError: a class that is not read, or other tensors than its.
        DamagedError: the weights cannot be read.
    """
    settings = read_settings(path / _SETTINGS)
    trainer = cast("dict[str, Any]", settings.get("trainer") or {})
    kind = str(trainer.get("dict_class"))
    if kind not in CLASSES:
        raise ConfigError(f"{path}: Scansion does not read the class {kind!r}; it reads {', '.join(CLASSES)}")
    config, weights = _converted(kind, read_pickled(path / _WEIGHTS), path / _WEIGHTS)
    layer = trainer.get("layer")
    return ForeignSAE(
        NAME,
        config,
        weights,
        trainer.get("lm_name"),
        f"resid_post.{layer}" if isinstance(layer, int) and "resid" in str(trainer.get("submodule_name")) else None,
        cast("dict[str, Any]", settings.get("buffer") or {}).get("ctx_len"),
    )


def _converted(kind: str, tensors: dict[str, Any], file: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        subtracts = kind == "AutoEncoder"
        bias = "bias" if subtracts else "decoder.bias"
        W_enc, b_enc, W_dec, b_dec = take(tensors, ("encoder.weight", "encoder.bias", "decoder.weight", bias), file)
        if subtracts:  # their loader does the same: decoder rows of length 1, and activations that much larger
            norms = W_dec.norm(dim=0)
            W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms
        weights = standard_weights(W_enc.T, b_enc, W_dec.T, b_dec, subtracts_bias=subtracts)
        return ReluConfig(d_sae=len(b_enc)), weights
    if kind == "GatedAutoEncoder":
        W_enc, W_dec, b_dec, r_mag, b_gate, b_mag = take(
            tensors, ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"), file
        )
        weights = standard_weights(W_enc.T, b_gate, W_dec.T, b_dec, subtracts_bias=True)
        return GatedConfig(d_sae=len(b_gate)), weights | {"r_mag": r_mag.float(), "b_mag": b_mag.float()}
    if kind == "JumpReluAutoEncoder":
        W_enc, b_enc, W_dec, b_dec, threshold = take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), file)
        weights = standard_weights(W_enc, b_enc, W_dec, b_dec, subtracts_bias=False)
        return JumpReluConfig(d_sae=len(b_enc)), weights | {"log_threshold": log_of_threshold(threshold, len(b_enc))}
    if kind == "MatryoshkaBatchTopKSAE":
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        W_enc, b_enc, W_dec, b_dec, threshold = take(tensors, names, file, ("k", "group_sizes"))
    else:
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
        W_enc, b_enc, W_dec, b_dec = take(tensors, names, file, ("k", "threshold"))
        W_enc, W_dec, threshold = W_enc.T, W_dec.T, tensors.get("threshold")
    weights = standard_weights(W_enc, b_enc, W_dec, b_dec, subtracts_bias=True)
    d_sae = len(b_enc)
    if kind == "AutoEncoderTopK":
        return TopKConfig(d_sae=d_sae, k=int(tensors["k"])), weights
    if not isinstance(threshold, Tensor):
        raise ConfigError(f"{file} has no threshold, by which a {kind} is used")
    return JumpReluConfig(d_sae=d_sae), weights | {"log_threshold": log_of_threshold(threshold, d_sae)}
