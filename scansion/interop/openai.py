"""OpenAI's ``sparse_autoencoder``: one ``.pt`` file with a state dict. ReLU SAEs, and TopK SAEs behind a LayerNorm."""

from __future__ import annotations

from pathlib import Path

from scansion.errors import ConfigError
from scansion.interop.weights import ForeignSAE, read_pickled, standard_weights, take
from scansion.sae import ReluConfig, TopKConfig

NAME = "OpenAI"
_TENSORS = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")


def fits(path: Path) -> bool:
    """Whether a file may be of this library: the only one that keeps an SAE in one ``.pt`` file."""
    return path.is_file() and path.suffix == ".pt"


def read(path: Path) -> ForeignSAE:
    """Read a file.

    Raises:
        ConfigError: another activation than ReLU and TopK, or a TopK that keeps negative activations.
        DamagedError: it cannot be read.
    """
    state = read_pickled(path)
    activation, settings = state.get("activation", "ReLU"), state.get("activation_state_dict") or {}
    after = settings.get("postact_fn", "ReLU")
    if activation not in ("ReLU", "TopK") or after != "ReLU":
        shown = activation if after == "ReLU" else f"{activation}, then {after}"
        raise ConfigError(f"{path} is an {NAME} SAE with the activation {shown!r}; Scansion reads ReLU and TopK")
    others = [name for name in state if name.startswith(("activation", "stats", "latents_"))]
    W_enc, b_enc, W_dec, b_dec = take(state, _TENSORS, path, others)
    weights = standard_weights(W_enc.T, b_enc, W_dec.T, b_dec, subtracts_bias=True)
    if activation == "ReLU":
        return ForeignSAE(NAME, ReluConfig(d_sae=len(b_enc)), weights)
    k = settings.get("k")
    if not isinstance(k, int):
        raise ConfigError(f"{path} does not say k")
    # Their loader too takes TopK for the sign that each token is normalised.
    return ForeignSAE(NAME, TopKConfig(d_sae=len(b_enc), k=k, input_norm="layer_norm"), weights)
