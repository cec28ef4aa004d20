"""What all readers share: an SAE in our terms, and the conventions in which libraries differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scansion.errors import ConfigError, DamagedError
from scansion.sae import SAE, SAEConfig, build_sae

# Thresholds are stored as logarithms: one of 0 or below, which lets everything positive pass, becomes this.
_LEAST_THRESHOLD = 1e-30


@dataclass(frozen=True)
class ForeignSAE:
    """An SAE of another library, in our terms: ``activation((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec``.

    Attributes:
        library: who wrote it, for people.
        config: our architecture with the same result.
        weights: our parameters and buffers by name, float32.
        model: name of the language model, as the library knows it; None where the file does not say.
        hook_point: where its activations come from, as the library names it; None where the file does not say.
        context_length: tokens in a context of its training; None where the file does not say.
        n_positions: length of its mask; None of SAEs without one.

    Example:
        >>> foreign = scansion.read_foreign("exported")
        >>> sae = foreign.build(n_positions=16)
    """

    library: str
    config: SAEConfig
    weights: Mapping[str, Tensor]
    model: str | None = None
    hook_point: str | None = None
    context_length: int | None = None
    n_positions: int | None = None

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.weights["W_enc"].shape[0]

    def build(self, n_positions: int) -> SAE:
        """The SAE, in evaluation mode.

        Args:
            n_positions: length of the contexts it will be used on. Without a mask every length gives the same result.

        Raises:
            ConfigError: the weights do not fit together, or its mask is of another length.
        """
        if self.n_positions not in (None, n_positions):
            raise ConfigError(f"its mask is of {self.n_positions} positions, and the contexts have {n_positions}")
        sae = build_sae(self.config, self.d_in, n_positions, torch.Generator().manual_seed(0))
        try:
            sae.load_state_dict(dict(self.weights), strict=True)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"the weights of this {self.library} SAE do not fit together: {why}") from error
        return sae.eval()


def standard_weights(
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, "d_in"],
    *,
    subtracts_bias: bool,
) -> dict[str, Tensor]:
    """Our four parameters, in float32.

    Args:
        W_enc, b_enc, W_dec, b_dec: theirs.
        subtracts_bias: whether they subtract ``b_dec`` from the input, as we do. If not, ``b_enc`` makes up for it.
    """
    W_enc, b_enc, W_dec, b_dec = (each.float() for each in (W_enc, b_enc, W_dec, b_dec))
    if not subtracts_bias:
        b_enc = b_enc + b_dec @ W_enc
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def log_of_threshold(threshold: Tensor, d_sae: int) -> Tensor:
    """A threshold, or one for each feature, as a JumpReLU SAE of ours stores it."""
    return threshold.float().clamp_min(_LEAST_THRESHOLD).log().expand(d_sae).clone()


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object that another library wrote.

    Raises:
        ConfigError: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no settings")
    return cast("dict[str, Any]", value)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that another library wrote.

    Raises:
        DamagedError: it is missing, or not a safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} is missing or damaged: {' '.join(str(error).split())}") from error


def read_pickled(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, if it is a mapping of tensors and plain values: no code in the file is run.

    Raises:
        DamagedError: it is something else, or damaged.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        raise DamagedError(
            f"{path} is damaged, or holds more than tensors: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} does not hold named tensors")
    return cast("dict[str, Any]", value)


def take(tensors: Mapping[str, Any], names: Sequence[str], path: Path, others: Sequence[str] = ()) -> list[Tensor]:
    """The tensors with these names, which must be all there are.

    Args:
        tensors: by name.
        names: those needed, in the order of the result.
        path: for the message.
        others: names that may be there and are not needed.

    Raises:
        ConfigError: one is missing, is no tensor, or there are others, which would change what the SAE computes.
    """
    missing = [name for name in names if not isinstance(tensors.get(name), Tensor)]
    unknown = sorted(set(tensors) - set(names) - set(others))
    if missing or unknown:
        raise ConfigError(
            f"{path} does not hold the tensors expected: "
            + "; ".join(
                f"{', '.join(found)} {what}" for found, what in ((missing, "missing"), (unknown, "unknown")) if found
            )
        )
    return [tensors[name] for name in names]
