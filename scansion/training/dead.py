"""Dead features: found by counting the tokens they could have fired on, and revived at badly reconstructed tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.readings import Reading, start_copy
from scansion.sae import SAE, Losses


class DeadFeatures:
    """For each feature, the number of tokens *at positions its mask allows* since it last fired.

    Args:
        sae: the SAE whose features are watched.
        after_tokens: a feature is dead after this many such tokens without firing.
    """

    def __init__(self, sae: SAE, after_tokens: int) -> None:
        self.tokens_since_fired: Int[Tensor, "d_sae"] = torch.zeros(
            sae.d_sae, dtype=torch.int64, device=sae.W_dec.device
        )
        self.after_tokens = after_tokens
        self._mask_of: Reading[Tensor] = Reading(lambda tokens: tokens >= after_tokens)

    @property
    def mask(self) -> Bool[Tensor, "d_sae"]:
        """True for a dead feature; on a GPU the same tensor until a feature is counted again."""
        return self._mask_of(self.tokens_since_fired)

    @torch.no_grad()
    def observe(self, fired: Int[Tensor, "d_sae"], allowed: Bool[Tensor, "P d_sae"], per_position: int) -> None:
        """Count one batch.

        Args:
            fired: tokens of the batch on which each feature fired.
            allowed: whether each feature may fire at each of the batch's positions.
            per_position: tokens of the batch at each position.
        """
        self.tokens_since_fired += allowed.sum(dim=0) * per_position
        self.tokens_since_fired.masked_fill_(fired > 0, 0)
        start_copy(self.mask)  # the next step's auxiliary loss reads it


@torch.no_grad()
def resample(
    sae: SAE,
    moments: Callable[[Tensor], dict[str, Tensor]],
    dead: DeadFeatures,
    x: Float[Tensor, "P n d_in"],
    losses: Losses,
    trained: Bool[Tensor, "P d_sae"],
    generator: torch.Generator,
) -> None:
    """Point every dead feature at a badly reconstructed token, after Bricken et al. 2023 ("Neuron resampling").

    The token is drawn with probability proportional to its squared error, among the tokens at positions where the mask
    lets the feature train. The decoder row becomes the token's residual at unit norm. The encoder column takes the same
    direction, with a fifth of the mean norm of the living features' columns. The encoder bias and Adam's moments of the
    feature become 0.

    Args:
        sae: changed in place.
        moments: returns Adam's moments of a parameter, to be changed in place.
        dead: says which features are dead; the revived ones start counting again.
        x: the batch.
        losses: of the batch.
        trained: True where the mask lets a feature train.
        generator: source of the draw.
    """
    indices = dead.mask.nonzero().squeeze(1)
    if len(indices) == 0 or len(indices) == sae.d_sae:
        return
    residual = losses.residual.detach().flatten(0, 1)
    error = residual.square().sum(dim=1).view(x.shape[:2])
    indices, weights = chances(error, trained, indices)
    if len(indices) == 0:
        return
    tokens = torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(x.device)
    point_at(sae, moments, dead, indices, residual[tokens], sae.W_enc[:, ~dead.mask].norm(dim=0).mean())


def chances(
    error: Float[Tensor, "P n"], trained: Bool[Tensor, "P d_sae"], indices: Int[Tensor, "m"]
) -> tuple[Int[Tensor, "k"], Float[Tensor, "k t"]]:
    """Those of the dead features that some token can revive, and for each token a number in proportion to its chance."""
    weights = (error[None] * trained.T[indices, :, None]).flatten(1)
    usable = weights.sum(dim=1) > 0
    return indices[usable], weights[usable]


@torch.no_grad()
def point_at(
    sae: SAE,
    moments: Callable[[Tensor], dict[str, Tensor]],
    dead: DeadFeatures,
    indices: Int[Tensor, "k"],
    residuals: Float[Tensor, "k d_in"],
    alive_norm: Float[Tensor, ""],
) -> None:
    """Point dead features at the residuals of the tokens drawn for them; see :func:`resample`.

    Args:
        sae, moments, dead: as for :func:`resample`.
        indices: of the features.
        residuals: of the token of each.
        alive_norm: mean norm of the encoder columns of living features.
    """
    directions = residuals / residuals.norm(dim=1, keepdim=True)
    sae.W_dec[indices] = directions
    sae.W_enc[:, indices] = 0.2 * alive_norm * directions.T
    sae.b_enc[indices] = 0.0
    for parameter, axis in sae.feature_axes():
        for moment in moments(parameter).values():
            moment.index_fill_(axis, indices, 0.0)
    dead.tokens_since_fired[indices] = 0
