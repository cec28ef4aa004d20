"""Start a masked SAE from a trained one without a mask: copy its weights, and allow features where they fire there."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scansion.activations import ActivationStream
from scansion.errors import TrainingError
from scansion.sae import SAE, SAEConfig, load_sae

# Batches of the stream on which the usage is measured; at 2048 tokens each, about 500 tokens per position.
USAGE_BATCHES = 32


def check_usage_source(config: SAEConfig, d_in: int) -> None:
    """Raise unless the SAE to start from is there and fits; loads it, which takes about a second.

    Raises:
        TrainingError: it has another architecture, d_sae or d_in, or it has a mask.
        ScansionError: the folder holds no SAE.
    """
    source = config.mask.usage_source
    if source is None:
        return
    trained, _ = load_sae(source)
    given = (trained.config.architecture, trained.d_sae, trained.d_in, trained.config.mask.family)
    expected = (config.architecture, config.d_sae, d_in, "none")
    if given != expected:
        raise TrainingError(
            f"{source} cannot be started from: its architecture, d_sae, d_in and mask are {given}, not {expected}"
        )


@torch.no_grad()
def start_from_usage(sae: SAE, stream: ActivationStream, scale: float) -> None:
    """Copy the weights of the SAE that ``sae``'s config names as its start, and set the mask by where its features fire.

    Args:
        sae: takes activations scaled by ``scale``; changed in place. Nothing happens if its config names no SAE.
        stream: the usage is measured on its first batches.
        scale: the stream's input scale.
    """
    source = sae.config.mask.usage_source
    if source is None:
        return
    trained, _ = load_sae(source, sae.W_dec.device)
    trained.fold_scale(1 / scale)
    weights = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("mask.")}
    sae.load_state_dict(sae.state_dict() | weights)
    sae.mask.start_from_usage(_usage(trained, stream, scale))


def _usage(sae: SAE, stream: ActivationStream, scale: float) -> Float[Tensor, "L d_sae"]:
    """Share of the tokens at each position on which each feature fires; 0 at positions that the stream skips."""
    usage = torch.zeros(stream.store.n_positions, sae.d_sae, device=sae.W_dec.device)
    for batch in stream.batches(0, USAGE_BATCHES):
        x = batch.x.to(sae.W_dec.device) * scale
        acts = sae.encode(x, batch.token_positions.to(x.device))
        usage[batch.positions] += (acts > 0).float().mean(dim=1) / USAGE_BATCHES
    return usage
