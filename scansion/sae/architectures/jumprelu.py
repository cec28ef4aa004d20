"""JumpReLU SAE (Rajamanoharan et al. 2024): a learnt threshold per feature, trained by straight-through estimation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass, sum_over
from scansion.sae.registry import register_architecture
from scansion.sae.structure import KeepsAbove, Selection


class JumpReluConfig(SAEConfig, frozen=True):
    """Settings of :class:`JumpReluSAE`; thresholds and bandwidth are for inputs scaled to unit mean norm.

    Example:
        >>> scansion.JumpReluConfig(d_sae=2304, l0_coefficient=0.002)
    """

    architecture: Literal["jumprelu"] = "jumprelu"
    l0_coefficient: float = Field(
        default=1e-3, ge=0, description="Weight of the penalty on the number of active features per token."
    )
    initial_threshold: float = Field(default=0.01, gt=0, description="Threshold of every feature at the start.")
    bandwidth: float = Field(
        default=0.05,
        gt=0,
        description="Width of the window around the threshold in which pre-activations give it gradient.",
    )
    threshold_travel: float = Field(
        default=6.0,
        ge=0,
        exclude_if=lambda travel: travel == 0,  # so that runs from before this setting keep their identity
        description="How far the logarithm of a threshold can move in a run, however short: its learning rate is at least "
        "this / steps, at most 0.1. 0: the rate of all weights.",
    )


@register_architecture(JumpReluConfig)
class JumpReluSAE(SAE):
    """Keeps activations above a learnt threshold per feature; the penalty counts active features.

    ``acts = pre_acts`` where ``pre_acts`` exceeds the feature's threshold, else 0.
    """

    config: JumpReluConfig
    revival = "resample"
    auxiliary_per = "token"

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, n_positions, generator)
        # Learnt as a logarithm so that it stays positive under any optimiser step.
        self.log_threshold: Float[Tensor, "d_sae"] = nn.Parameter(
            torch.full((self.d_sae,), math.log(self.config.initial_threshold))
        )

    @property
    def threshold(self) -> Float[Tensor, "d_sae"]:
        """Each feature's threshold, above 0, in units of its activation."""
        return self.log_threshold.exp()

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        threshold = self.threshold if features is None else self.threshold[features]
        return _JumpRelu.apply(pre_acts, threshold, self.config.bandwidth)

    def selection(self) -> Selection | None:
        return KeepsAbove(self.threshold, self.config.bandwidth)

    def sparsity_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        count = forward.known_count
        if count is None:
            count = sum_over(
                _Step.apply(part.pre_acts, part.block.of_features(self.threshold), self.config.bandwidth)
                for part in forward.parts
            )
        return self.config.l0_coefficient * count / forward.n_tokens

    def travels(self) -> list[tuple[Tensor, float]]:
        return [(self.log_threshold, self.config.threshold_travel)]

    def feature_axes(self) -> list[tuple[Tensor, int]]:
        return [*super().feature_axes(), (self.log_threshold, 0)]

    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        with torch.no_grad():
            self.log_threshold -= math.log(scale)

    def rescale_features(self, factor: Float[Tensor, "d_sae"]) -> None:
        super().rescale_features(factor)
        with torch.no_grad():
            self.log_threshold += factor.log()


def _near(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel: 1 / bandwidth within half a bandwidth of the threshold, else 0."""
    return ((pre_acts - threshold).abs() < bandwidth / 2).to(pre_acts.dtype) / bandwidth


def _sum_to_features(gradient: Tensor) -> Tensor:
    return gradient.flatten(0, -2).sum(dim=0)


class _Step(torch.autograd.Function):
    """``1[pre_acts > threshold]``; the threshold's gradient is the kernel density at it (the paper's eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return (pre_acts > threshold).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        pre_acts, threshold = ctx.saved_tensors
        return None, _sum_to_features(-_near(pre_acts, threshold, ctx.bandwidth) * gradients[0]), None


class _JumpRelu(torch.autograd.Function):
    """``pre_acts * 1[pre_acts > threshold]``; gradient to the input where active, to the threshold by the kernel (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return pre_acts.where(pre_acts > threshold, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_acts, threshold = ctx.saved_tensors
        gradient = gradients[0]
        to_threshold = _sum_to_features(-threshold * _near(pre_acts, threshold, ctx.bandwidth) * gradient)
        return gradient * (pre_acts > threshold), to_threshold, None
