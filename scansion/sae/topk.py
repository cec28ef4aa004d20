"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"): the k largest features of each token."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from scansion.sae.base import SAE, SAEConfig


class TopKKindConfig(SAEConfig, frozen=True):
    """Settings shared by the architectures that fix the number of active features."""

    k: int = Field(default=32, ge=1, description="Active features a token (on average over a batch for batch_topk).")
    auxiliary_coefficient: float = Field(
        default=1 / 32, ge=0, description="Weight of the loss by which dead features model the residual."
    )


class TopKConfig(TopKKindConfig, frozen=True):
    """Settings of :class:`TopKSAE`."""

    architecture: Literal["topk"] = "topk"


class TopKKindSAE(SAE):
    """What TopK and BatchTopK share: dead features are kept alive by an auxiliary reconstruction of the residual."""

    config: TopKKindConfig
    revival = "none"

    def auxiliary_loss(
        self,
        residual: Float[Tensor, "*batch d_in"],
        pre_acts: Float[Tensor, "*batch d_sae"],
        dead: Bool[Tensor, "d_sae"],
    ) -> Float[Tensor, ""]:
        """AuxK: the d_in / 2 largest dead features reconstruct the residual; error relative to the residual's own."""
        indices = dead.nonzero().squeeze(1)
        if self.config.auxiliary_coefficient == 0 or len(indices) == 0:
            return residual.new_zeros(())
        residual = residual.detach()
        dead_acts = top_k_acts(pre_acts[..., indices], max(1, self.d_in // 2))
        error = (residual - dead_acts @ self.W_dec[indices]).pow(2).sum(dim=-1).mean()
        scale = residual.pow(2).sum(dim=-1).mean()
        # A perfect reconstruction leaves nothing to model and would divide by zero.
        return self.config.auxiliary_coefficient * torch.nan_to_num(error / scale, nan=0.0, posinf=0.0)


class TopKSAE(TopKKindSAE):
    """``acts`` = the k largest positive pre-activations of each token; the rest are 0."""

    def activate(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return top_k_acts(pre_acts, self.config.k)


def top_k_acts(pre_acts: Float[Tensor, "*batch d"], k: int) -> Float[Tensor, "*batch d"]:
    """Keep the k largest positive entries along the last axis (all of them where there are fewer than k)."""
    values, indices = pre_acts.topk(min(k, pre_acts.shape[-1]), dim=-1, sorted=False)
    return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())
