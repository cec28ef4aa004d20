"""An architecture of your own: a ReLU SAE whose penalty levels off, so that strong activations are not shrunk.

Try it with ``scansion --plugin examples/architecture.py study run PLAN.yaml``, where the plan says ``architecture: tanh``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from scansion.sae import SAE, ForwardPass, SAEConfig, register_architecture


class TanhConfig(SAEConfig, frozen=True):
    """Settings of :class:`TanhSAE`; ``d_sae`` and ``mask`` come with every architecture."""

    architecture: Literal["tanh"] = "tanh"
    coefficient: float = Field(default=0.04, ge=0, description="Weight of the penalty.")
    width: float = Field(default=0.1, gt=0, description="Activations well above this all cost the same.")


@register_architecture(TanhConfig)
class TanhSAE(SAE):
    """``acts = relu(pre_acts)``; the penalty is the sum over features of ``width * tanh(act / width)``."""

    config: TanhConfig
    revival = "resample"  # how dead features come back

    def activate(self, pre_acts: Tensor, features: Tensor | None = None) -> Tensor:
        return pre_acts.relu()

    def sparsity_loss(self, forward: ForwardPass) -> Tensor:
        width = self.config.width
        penalty = sum((width * (part.acts / width).tanh()).sum() for part in forward.parts)
        return self.config.coefficient * penalty / forward.n_tokens
