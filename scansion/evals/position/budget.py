"""The four budgets on which SAEs with different masks may be called equal."""

from __future__ import annotations

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from scansion.sae import SAE
from scansion.sae.architectures.switch import SwitchSAE


class Budget(BaseModel):
    """Width, available width, operations, and activity: SAEs equal in one are seldom equal in the others.

    Attributes:
        width: features in all.
        available_mean, available_min, available_max: features that may fire at a position used.
        execution: how the SAE is trained: ``dense``, ``banded`` (each position computes its band and the shared part)
            or ``routed`` (each token computes one expert).
        operations_per_token: multiplications and additions of one forward pass (encoder and decoder as matrix products)
            executed so; ``4 d_in d_sae`` if dense. A training step takes about three times as many.
        l0_by_position: mean number of active features at each position used, mask in force.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    available_mean: float
    available_min: int
    available_max: int
    execution: str
    operations_per_token: float
    l0_by_position: list[float]


def budget_of(sae: SAE, positions: Int[Tensor, "P"], l0_by_position: list[float]) -> Budget:
    """The budgets of an SAE over the positions used."""
    available = sae.mask.can_fire(positions.to(sae.W_dec.device)).sum(dim=-1).cpu()
    bands = sae.mask.gate.bands
    per_feature = 4 * sae.d_read
    if bands is not None:
        execution = "banded"
        band = torch.searchsorted(torch.tensor(bands.edges[1:-1]), positions.cpu(), right=True)
        operations = per_feature * float((bands.shared + torch.tensor(bands.sizes)[band]).double().mean())
    elif isinstance(sae, SwitchSAE) and not sae.config.mask.has_weights:
        execution = "routed"
        experts = sae.config.n_experts
        operations = float(per_feature * sae.d_sae / experts + 2 * sae.d_read * experts)
    else:
        execution, operations = "dense", float(per_feature * sae.d_sae)
    return Budget(
        width=sae.d_sae,
        available_mean=float(available.double().mean()),
        available_min=int(available.min()),
        available_max=int(available.max()),
        execution=execution,
        operations_per_token=operations,
        l0_by_position=l0_by_position,
    )
