"""A training step's losses: the plan names a way, the way computes a forward pass, the architecture says what it costs."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.errors import ShapeError
from scansion.execution import backends
from scansion.execution.banded import banded_forward
from scansion.execution.fused import fused_forward
from scansion.execution.plan import Plan, Way, plan_execution
from scansion.execution.reference import dense_forward
from scansion.execution.routed import routed_forward
from scansion.execution.sparse import sparse_forward
from scansion.sae.base import SAE
from scansion.sae.forward import ForwardPass, Losses


def training_losses(sae: SAE, batch: PositionedBatch, dead: Bool[Tensor, "d_sae"], way: Way | None = None) -> Losses:
    """The losses of one training forward pass, computed the fastest way that gives the dense way's numbers.

    Args:
        sae: in training mode.
        batch: grouped by position, positions ascending; with ``previous``, and without gaps, if the SAE ``uses_pairs``.
        dead: the features that an auxiliary loss should revive.
        way: compute them this way, which must be open; None for the fastest.

    Raises:
        ShapeError: the architecture learns from pairs of tokens, and the batch has no ``previous``.
    """
    if sae.uses_pairs and not batch.previous:
        raise ShapeError(f"{sae.config.architecture} learns from pairs of tokens: the batch needs previous")
    plan = plan_execution(sae, batch, way)
    forward, taken = _forward(sae, batch, plan, forced=way is not None)
    if sae.uses_pairs and batch.previous:
        forward = replace(forward, previous=batch.previous[0])
    return losses_of(sae, forward, batch, dead, taken)


def losses_of(sae: SAE, forward: ForwardPass, batch: PositionedBatch, dead: Bool[Tensor, "d_sae"], way: Way) -> Losses:
    """The losses of a forward pass: the one place that asks an architecture for them, so that its own methods always count.

    Args:
        sae, batch, dead: as for :func:`training_losses`.
        forward: over all of the batch.
        way: how it was computed.
    """
    sae.after_forward(forward)
    return Losses(
        reconstruction=sae.reconstruction_loss(forward),
        sparsity=sae.sparsity_loss(forward),
        auxiliary=sae.auxiliary_loss(forward, dead),
        residual=forward.residual_like(batch.x),
        fired=forward.fired,
        way=way,
    )


def _forward(sae: SAE, batch: PositionedBatch, plan: Plan, forced: bool) -> tuple[ForwardPass, Way]:
    """The forward pass, and the way that was taken in the end."""
    match plan.way:
        case "dense":
            return dense_forward(sae, batch), "dense"
        case "banded":
            return banded_forward(sae, batch, plan.blocks), "banded"
        case "routed":
            return routed_forward(sae, batch), "routed"
        case "fused":
            return fused_forward(sae, batch, plan.blocks), "fused"
        case "sparse":
            forward = sparse_forward(sae, batch, plan.blocks, 1.0 if forced else backends.RELU_DENSITY)
            if forward is not None:
                return forward, "sparse"
            return fused_forward(sae, batch, plan.blocks), "fused"
