"""T-SAE (Bhalla et al. 2025, arXiv 2511.05541): its high-level features should agree on adjacent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from scansion.readings import to_device
from scansion.sae.architectures.matryoshka import NestedConfig, NestedSAE
from scansion.sae.forward import ForwardPass, Part
from scansion.sae.registry import ARCHITECTURES, register_architecture


class TSAEConfig(NestedConfig, frozen=True):
    """Settings of :class:`TSAE`."""

    architecture: Literal["tsae", "temporal"] = "tsae"
    """``temporal``, the name before SAELens had another model of that name, is kept where it stands, so that files of then
    keep their identity."""
    prefixes: tuple[float, ...] = Field(
        default=(0.2, 1.0),
        description="Share of the features in each nested dictionary, ascending to 1; the first holds the high-level features.",
    )
    contrastive_coefficient: float = Field(
        default=1.0, ge=0, description="Weight of the contrastive loss between adjacent tokens."
    )


@register_architecture(TSAEConfig)
class TSAE(NestedSAE):
    """Matryoshka of two levels; a contrastive loss pulls the first level's codes of adjacent tokens together."""

    config: TSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again
    uses_pairs = True

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        return super().auxiliary_loss(forward, dead) + self._pair_loss(forward)

    def _pair_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        """InfoNCE over cosine similarities of high-level codes, both ways; the batch's other tokens are the negatives."""
        assert forward.previous is not None
        high = to_device(self.levels() == 0, self.W_dec.device)
        here = self._codes(forward.parts, high)[1:].flatten(0, 1)
        before = forward.previous_acts
        if before is None:
            before = self.masked_acts(forward.previous, forward.positions[1:, None] - 1).acts
        before = before[..., high].flatten(0, 1)
        similarity = normalize(here, dim=-1) @ normalize(before, dim=-1).T
        names = torch.arange(len(similarity), device=similarity.device)
        both = (cross_entropy(similarity, names) + cross_entropy(similarity.T, names)) / 2
        return self.config.contrastive_coefficient * both

    def _codes(self, parts: Sequence[Part], chosen: Bool[Tensor, "d_sae"]) -> Float[Tensor, "P n h"]:
        """The batch's activations of the chosen features, whichever part they come from."""
        codes: list[Tensor] = []
        for part in parts:
            acts = part.acts
            if part.block.features is not None:
                acts = acts.new_zeros(*acts.shape[:-1], self.d_sae).index_copy(-1, part.block.features, acts)
            codes.append(acts[..., chosen])
        return torch.cat(codes)


ARCHITECTURES.rename("temporal", "tsae")
