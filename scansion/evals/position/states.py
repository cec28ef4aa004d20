"""The controls: the same SAE with its mask in force, lifted, or permuted among features, and before training."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.activations import ActivationStore, ActivationStream, TokenExclusion
from scansion.evals.base import LoadedSAE
from scansion.masks import PermutedMask, PositionalMask, RandomHardMaskConfig, build_mask
from scansion.sae import SAE, build_sae


def acts_in_forward(sae: SAE) -> bool:
    """Whether the mask changes what fires: not if there is none, it is a placebo, or it only gates gradients."""
    return sae.mask.gate.forward


def measured_mask(sae: SAE, seed: int) -> tuple[PositionalMask, bool]:
    """The mask that firing is compared with, and whether it is the SAE's own.

    An SAE without one is compared with a random hard mask drawn for the purpose, each feature an eighth of the
    positions: what comes out is what chance and the data's own position structure give.
    """
    if sae.config.mask.has_weights:
        return sae.mask, True
    return build_mask(RandomHardMaskConfig(seed=seed), sae.n_positions, sae.d_sae), False


@torch.no_grad()
def weights_at(mask: PositionalMask, positions: Int[Tensor, "P"]) -> Float[np.ndarray, "P F"]:
    """The mask as it acts: rounded where only the rounded mask does."""
    places = positions.to(next(iter(mask.state_dict().values()), positions).device)
    rounded = mask.gate.kind == "straight_through"
    return (mask.is_open(places) if rounded else mask(places)).cpu().double().numpy()


def permuted(mask: PositionalMask, generator: torch.Generator) -> PermutedMask:
    """The mask with its bound features in a random order."""
    order = torch.randperm(mask.d_bound, generator=generator)
    moved = PermutedMask(mask, order)
    return moved.to(next(iter(mask.state_dict().values()), order).device)


@torch.no_grad()
def rebuild_start(subject: LoadedSAE, store: ActivationStore) -> SAE | str:
    """The SAE as it was before its first training step, built again from its seed; or why that cannot be done.

    The decoder bias starts at the mean of the training activations, which are not available here: the held-out store's
    mean stands in for it. That the SAE does descend from this start is checked on the decoder: its rows must point more
    towards their own start than chance allows.
    """
    sae, metadata = subject.sae, subject.metadata
    if not metadata.training or metadata.seed is None:
        return "how it was trained is not known"
    if sae.config.mask.usage_source is not None or metadata.started_from is not None:
        return "it was started from another trained SAE"
    if sae.mask.reorders_features:
        return "its features changed places in training"
    start = build_sae(sae.config, sae.d_in, sae.n_positions, torch.Generator().manual_seed(metadata.seed))
    start = start.to(sae.W_dec.device).eval()
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec, start.W_dec, dim=1).mean()
    # The cosine of two random directions has variance 1 / d_in.
    if not cosine > 5 / math.sqrt(sae.d_in * sae.d_sae):
        return f"its decoder does not resemble the start its seed gives (mean cosine {float(cosine):.3f})"
    settings = {name: value for name, value in metadata.training.items() if name in TokenExclusion.model_fields}
    left_out = TokenExclusion.model_validate(settings).excluded(store)
    stream = ActivationStream(store, 1, 0, metadata.use_position_0, in_memory=False, excluded=left_out)
    positions, means = stream.positions, stream.mean_by_position * metadata.input_scale
    start.start_at(means.to(sae.W_dec.device), positions.to(sae.W_dec.device))
    start.fold_scale(metadata.input_scale)
    return start
