"""Bands: contiguous stretches of positions, each owning a contiguous block of features. The fast structure."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field, model_validator
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks.base import MaskConfig
from scansion.masks.gate import Bands, Gate
from scansion.masks.hard import HardMask
from scansion.masks.registry import register_mask

DEFAULT_COUNT = 8


class BandMaskConfig(MaskConfig, frozen=True):
    """Settings of :class:`BandMask`. At most one of ``preset``, ``edges`` and ``count`` sets the bands.

    Example:
        >>> scansion.BandMaskConfig(count=8, shared=0.5)
        >>> scansion.BandMaskConfig(preset="groups")
    """

    family: Literal["bands"] = "bands"
    preset: Literal["groups", "static_slicing"] | None = Field(
        default=None,
        description="groups: early, middle and late (to an eighth, to half, to the end); "
        "static_slicing: 8 equal slices, each with a decoder bias of its own, in effect one SAE per slice.",
    )
    edges: tuple[int, ...] | None = Field(default=None, description="Band boundaries, ascending, from 0 to L.")
    count: int | None = Field(default=None, ge=1, description="Number of equal bands; default 8.")
    sizes: tuple[int, ...] | None = Field(
        default=None, description="Number of features of each band; default equal numbers of the bound features."
    )
    own_bias: bool | None = Field(
        default=None, description="Whether each band has its own decoder bias; default only under static_slicing."
    )

    @model_validator(mode="after")
    def _one_way(self) -> BandMaskConfig:
        given = [name for name in ("edges", "count", "preset") if getattr(self, name) is not None]
        if len(given) > 1 and given != ["count", "preset"]:
            raise ValueError(f"{' and '.join(given)} both set the bands; give one of them")
        if given == ["count", "preset"] and self.preset == "groups":
            raise ValueError("groups always has 3 bands; give count with static_slicing or alone")
        return self

    @property
    def has_own_bias(self) -> bool:
        """Whether each band has its own decoder bias."""
        return self.preset == "static_slicing" if self.own_bias is None else self.own_bias

    def edges_for(self, n_positions: int) -> tuple[int, ...]:
        """The boundaries in a context of ``n_positions`` tokens.

        Raises:
            ConfigError: they are not ascending from 0 to ``n_positions``, or there are more bands than positions.
        """
        if self.edges is not None:
            edges = self.edges
        elif self.preset == "groups":
            edges = (0, round(n_positions / 8), round(n_positions / 2), n_positions)
        else:
            count = self.count or DEFAULT_COUNT
            if count > n_positions:
                raise ConfigError(f"{count} bands do not fit in contexts of {n_positions} tokens; ask for fewer")
            edges = tuple(round(g * n_positions / count) for g in range(count + 1))
        if not edges or edges[0] != 0 or edges[-1] != n_positions or any(a >= b for a, b in pairwise(edges)):
            raise ConfigError(
                f"band edges should ascend from 0 to {n_positions}, the context length, but are {str(list(edges))[:200]}"
            )
        return edges

    def sizes_for(self, n_bands: int, d_bound: int) -> tuple[int, ...]:
        """Features of each band.

        Raises:
            ConfigError: the bound features do not divide evenly, or ``sizes`` does not add up to them.
        """
        if self.sizes is None:
            if d_bound % n_bands:
                raise ConfigError(
                    f"{d_bound} bound features do not divide evenly among {n_bands} bands; change d_sae or shared, or "
                    "give sizes"
                )
            return (d_bound // n_bands,) * n_bands
        if len(self.sizes) != n_bands or sum(self.sizes) != d_bound or min(self.sizes) < 0:
            raise ConfigError(
                f"sizes should be {n_bands} numbers that add up to the {d_bound} bound features, "
                f"not {str(list(self.sizes))[:200]}"
            )
        return self.sizes


@register_mask(BandMaskConfig)
class BandMask(HardMask):
    """Positions are split into contiguous bands, and each band has a contiguous block of the bound features to itself.

    Args:
        config: boundaries, sizes and the shared part.
        n_positions: context length L.
        d_sae: number of features; the bound ones divide evenly among the bands unless ``sizes`` says otherwise.

    Raises:
        ConfigError: edges out of order or out of range, or features that do not divide.
    """

    def __init__(self, config: BandMaskConfig, n_positions: int, d_sae: int) -> None:
        shared = round(config.shared * d_sae)
        edges = config.edges_for(n_positions)
        sizes = config.sizes_for(len(edges) - 1, d_sae - shared)
        self._bands = Bands(edges, shared, sizes)
        self.has_own_bias = config.has_own_bias
        super().__init__(config, n_positions, d_sae, band_table(self._bands))
        self.inner_edges: Int[Tensor, "n_bands_less_1"]
        # A buffer, so that it moves with the mask to another device; not saved, because the settings determine it.
        self.register_buffer("inner_edges", torch.tensor(self._bands.edges[1:-1], dtype=torch.int64), persistent=False)

    @property
    def n_bands(self) -> int:
        """Number of bands."""
        return len(self._bands.sizes)

    @property
    def gate(self) -> Gate:
        return Gate.of(self.config.acts_on, binary=True, bands=self._bands)

    @property
    def n_decoder_biases(self) -> int:
        return self.n_bands if self.has_own_bias else 1

    def band_at(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Index of the band that holds each position."""
        return torch.searchsorted(self.inner_edges.to(positions), self.table_rows(positions).contiguous(), right=True)


def band_table(bands: Bands) -> Bool[Tensor, "L d_bound"]:
    """True where a position is in the band that owns a feature."""
    blocks = [torch.zeros(bands.edges[-1], size, dtype=torch.bool) for size in bands.sizes]
    for block, start, stop in zip(blocks, bands.edges[:-1], bands.edges[1:], strict=True):
        block[start:stop] = True
    return torch.cat(blocks, dim=1)
