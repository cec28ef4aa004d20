"""OpenAI's ``sparse_autoencoder``: one ``.pt`` file with a state dict. ReLU SAEs only."""

from __future__ import annotations

from pathlib import Path

from scansion.errors import ConfigError
from scansion.interop.weights import ForeignSAE, read_pickled, standard_weights, take
from scansion.sae import ReluConfig

NAME = "OpenAI"
_TENSORS = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")


def fits(path: Path) -> bool:
    """Whether a file may be of this library: the only one that keeps an SAE in one ``.pt`` file."""
    return path.is_file() and path.suffix == ".pt"


def read(path: Path) -> ForeignSAE:
    """Read a file.

    Raises:
        ConfigError: another activation than ReLU. TopK SAEs normalise each token first, which ours do not.
        DamagedError: it cannot be read.
    """
    state = read_pickled(path)
    activation = state.get("activation", "ReLU")
    if activation != "ReLU":
        raise ConfigError(
            f"{path} is an {NAME} SAE with the activation {activation!r}, which reads each token after a LayerNorm; "
            "Scansion's SAEs do not have one, and reads ReLU only"
        )
    others = [name for name in state if name.startswith(("activation", "stats"))]
    W_enc, b_enc, W_dec, b_dec = take(state, _TENSORS, path, others)
    weights = standard_weights(W_enc.T, b_enc, W_dec.T, b_dec, subtracts_bias=True)
    return ForeignSAE(NAME, ReluConfig(d_sae=len(b_enc)), weights)
