"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547): nested dictionaries, each of which reconstructs."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from scansion.masks import gated_product
from scansion.readings import to_device
from scansion.sae.architectures.batch_topk import BatchTopKKindConfig, BatchTopKSAE
from scansion.sae.forward import ForwardPass, Part, squared_norm
from scansion.sae.registry import register_architecture


class NestedConfig(BatchTopKKindConfig, frozen=True):
    """Settings of every architecture whose dictionaries are nested."""

    prefixes: tuple[float, ...] = Field(
        default=(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        description="Share of the features in each nested dictionary, ascending to 1.",
    )

    @field_validator("prefixes")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[float, ...]) -> tuple[float, ...]:
        if not prefixes or prefixes[-1] != 1 or any(a >= b for a, b in pairwise((0.0, *prefixes))):
            raise ValueError(f"prefixes should ascend from above 0 and end in 1, but are {list(prefixes)}")
        return prefixes


class MatryoshkaConfig(NestedConfig, frozen=True):
    """Settings of :class:`MatryoshkaSAE`."""

    architecture: Literal["matryoshka"] = "matryoshka"


class NestedSAE(BatchTopKSAE):
    """A BatchTopK SAE whose features have levels; all features up to any one level must reconstruct by themselves.

    Where the mask has bands, every token's own dictionary is nested: first come the shared features, then those of its
    band. With as many shared features as the first prefix holds, that is a position-free core with a banded remainder.
    """

    config: NestedConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again

    @property
    def n_levels(self) -> int:
        return len(self.config.prefixes)

    def levels(self) -> Int[Tensor, "d_sae"]:
        bands = self.mask.gate.bands
        if bands is None:
            return self._levels_of(self.d_sae)
        levels = [self._levels_of(bands.shared + size) for size in bands.sizes]
        common = levels[0][: bands.shared]  # of bands of unequal size, the first decides about the shared features
        return torch.cat([common, *(level[bands.shared :] for level in levels)])

    def _levels_of(self, n_features: int) -> Int[Tensor, "n_features"]:
        sizes = torch.tensor([max(1, round(prefix * n_features)) for prefix in self.config.prefixes])
        return torch.searchsorted(sizes, torch.arange(n_features), right=True)

    def reconstruction_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        """The mean over the nested dictionaries of the squared error of each."""
        n_levels, levels = self.n_levels, self.levels()
        total, weights = super().reconstruction_loss(forward), forward.decoder_weights
        if forward.nested is not None:
            return (total + (n_levels - 1) * squared_norm(forward.nested)) / n_levels
        missing = torch.zeros_like(forward.residual)  # what the features of later levels contribute
        for level in range(n_levels - 1, 0, -1):
            missing = missing + torch.cat(
                [self._contribution(part, levels == level, weights) for part in forward.parts]
            )
            total = total + squared_norm(forward.residual + missing)
        return total / n_levels

    def _contribution(self, part: Part, chosen: Tensor, weights: Tensor | None) -> Float[Tensor, "p n d_in"]:
        columns = to_device(part.block.columns_of(chosen), self.W_dec.device)
        acts = part.acts.index_select(-1, columns)
        W_dec = self.W_dec.index_select(0, part.block.named(columns))
        return acts @ W_dec if weights is None else gated_product(acts, W_dec, weights[..., columns])


@register_architecture(MatryoshkaConfig)
class MatryoshkaSAE(NestedSAE):
    """BatchTopK with nested dictionaries: the first sixteenth of the features, the first eighth, ... each reconstruct."""
