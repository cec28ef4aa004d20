"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"): the k largest features of each token."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from scansion.execution.operations import top_k
from scansion.execution.sparse_acts import SparseActs
from scansion.readings import on_cpu, to_device
from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass, sum_over
from scansion.sae.registry import register_architecture
from scansion.sae.structure import KeepsTopK, Selection


class TopKKindConfig(SAEConfig, frozen=True):
    """Settings shared by the architectures that fix the number of active features."""

    k: int = Field(default=32, ge=1, description="Active features per token (on average over a batch for batch_topk).")
    auxiliary_coefficient: float = Field(
        default=1 / 32, ge=0, description="Weight of the loss that trains dead features to reconstruct the residual."
    )

    @model_validator(mode="after")
    def _k_fits(self) -> TopKKindConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, more than the {self.d_sae} features; ask for fewer active features")
        return self


class TopKConfig(TopKKindConfig, frozen=True):
    """Settings of :class:`TopKSAE`.

    Example:
        >>> scansion.TopKConfig(d_sae=2304, k=32, mask=scansion.BandMaskConfig(count=8))
    """

    architecture: Literal["topk"] = "topk"


class TopKKindSAE(SAE):
    """What TopK and BatchTopK share: dead features are kept alive by an auxiliary reconstruction of the residual."""

    config: TopKKindConfig
    revival = "none"

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        """AuxK: the d_in / 2 largest dead features reconstruct the residual; error relative to the residual's own."""
        residual = forward.residual.detach()
        dead = on_cpu(dead)
        if self.config.auxiliary_coefficient == 0 or not bool(dead.any()):
            return residual.new_zeros(())
        errors: list[Tensor] = []
        for part in forward.parts:
            columns = to_device(part.block.columns_of(dead), residual.device)
            dead_acts = top_k_acts(part.pre_acts_of(columns), max(1, self.d_read // 2))
            errors.append((residual[part.block.rows] - dead_acts @ self.W_dec[part.block.named(columns)]).pow(2))
        # A perfect reconstruction leaves nothing to model and would divide by zero.
        relative = torch.nan_to_num(sum_over(errors) / residual.pow(2).sum(), nan=0.0, posinf=0.0)
        return self.config.auxiliary_coefficient * relative


@register_architecture(TopKConfig)
class TopKSAE(TopKKindSAE):
    """Keeps the k largest positive pre-activations of each token and sets the rest to 0."""

    auxiliary_per = "error"

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        return top_k_acts(pre_acts, self.config.k)

    def selection(self) -> Selection | None:
        return KeepsTopK(self.config.k)


def top_k_acts(pre_acts: Float[Tensor, "*batch d"], k: int) -> Float[Tensor, "*batch d"]:
    """Keep the k largest positive entries along the last axis (all of them where there are fewer than k)."""
    if k >= pre_acts.shape[-1]:
        return pre_acts.relu()
    if not pre_acts.requires_grad:
        entries = _entries(pre_acts, k)
        cells = entries.features + entries.tokens * entries.d_sae
        # On a GPU, entries of value 0 may name the cell of another entry: they are added, which takes longer.
        acts = pre_acts.new_zeros(pre_acts.numel())
        return acts.index_put_((cells,), entries.values, accumulate=acts.device.type != "cpu").view(pre_acts.shape)
    values, indices = pre_acts.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())


def _entries(pre_acts: Float[Tensor, "*batch d"], k: int) -> SparseActs:
    """The k largest positive entries along the last axis."""
    width = pre_acts.shape[-1]
    return SparseActs.from_row_counts(*top_k(pre_acts.reshape(-1, width), k), width)
