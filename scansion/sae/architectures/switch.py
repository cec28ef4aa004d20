"""Switch SAE (Mudide et al. 2024, arXiv 2410.08201): a learnt router sends each token to one of several TopK SAEs."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from scansion.masks.base import MaskedActs
from scansion.sae.architectures.topk import TopKKindConfig, TopKSAE
from scansion.sae.base import SAEConfig
from scansion.sae.forward import ForwardPass
from scansion.sae.registry import register_architecture
from scansion.sae.structure import Routing
from scansion.shapes import require_shape


class SwitchConfig(TopKKindConfig, frozen=True):
    """Settings of :class:`SwitchSAE`."""

    architecture: Literal["switch"] = "switch"
    n_experts: int = Field(default=8, ge=1, description="Number of experts, which divide the features equally.")
    balance_coefficient: float = Field(
        default=3.0, ge=0, description="Weight of the loss that gives all experts equal shares of the tokens."
    )

    @model_validator(mode="after")
    def _check_experts(self) -> SwitchConfig:
        if self.d_sae % self.n_experts:
            raise ValueError(f"{self.n_experts} experts cannot divide {self.d_sae} features equally")
        return self


@register_architecture(SwitchConfig)
class SwitchSAE(TopKSAE):
    """TopK split into experts: a learnt router sends each token to one, and only its features may fire.

    Feature f belongs to expert f mod n_experts; a token may use those of its most probable expert only.
    Activations are multiplied by the expert's probability, through which the router learns. It is static slicing with
    a router that is learnt, and that reads the activation in place of the position. Without a positional mask, an
    expert is computed for its own tokens only.
    """

    config: SwitchConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, n_positions, generator)
        n_experts = self.config.n_experts
        self.router: Float[Tensor, "d_in n_experts"] = nn.Parameter(
            torch.randn(d_in, n_experts, generator=generator) / d_in**0.5
        )
        self.b_router: Float[Tensor, "d_in"] = nn.Parameter(torch.zeros(d_in))
        self.expert: Int[Tensor, "d_sae"]
        self.register_buffer("expert", torch.arange(self.d_sae) % n_experts)

    def route(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_experts"]:
        """The router's probability of each expert."""
        return ((x - self.b_router) @ self.router).softmax(dim=-1)

    @torch.no_grad()
    def start_at(self, means: Float[Tensor, "P d_in"], positions: Int[Tensor, "P"]) -> None:
        super().start_at(means, positions)
        self.b_router.copy_(means.mean(dim=0))

    @torch.no_grad()
    def permute_features(self, order: Int[Tensor, "d_sae"]) -> None:
        super().permute_features(order)
        self.expert.copy_(self.expert[order.to(self.expert.device)])

    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        with torch.no_grad():
            self.router *= scale
            self.b_router /= scale

    def routing(self, x: Float[Tensor, "T d_in"]) -> Routing | None:
        weight, group = self.route(x).max(dim=-1)
        n_experts = self.config.n_experts
        return Routing(group, weight, self.expert, (self.d_sae // n_experts,) * n_experts)

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        return super().auxiliary_loss(forward, dead) + self._balance_loss(self.route(forward.x))

    def masked_acts(self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None) -> MaskedActs:
        require_shape("x", x, "... d_in", d_in=self.d_read)
        probability, expert = self.route(x).max(dim=-1, keepdim=True)
        elsewhere = self.expert != expert

        def activate(pre_acts: Tensor) -> Tensor:
            return self.activate(pre_acts.masked_fill(elsewhere, -torch.inf)) * probability

        gated = self._masked_acts_by(activate, x, positions)
        return MaskedActs(gated.pre_acts.masked_fill(elsewhere, -torch.inf), gated.acts)

    def _balance_loss(self, probabilities: Float[Tensor, "*batch n_experts"]) -> Float[Tensor, ""]:
        """n_experts x the sum over experts of (share of tokens x mean probability); 1 x the coefficient at balance."""
        flat = probabilities.flatten(0, -2)
        shares = torch.bincount(flat.argmax(dim=-1), minlength=self.config.n_experts) / len(flat)
        return self.config.balance_coefficient * self.config.n_experts * (shares * flat.mean(dim=0)).sum()
