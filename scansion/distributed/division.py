"""Which positions and which features each rank has, and how an SAE's tensors are cut into pieces that ranks can own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks import BandMaskConfig, PositionalMask
from scansion.masks.gate import Bands
from scansion.sae import SAE, SAEConfig, build_sae


@dataclass(frozen=True)
class Division:
    """How a run is divided over ranks.

    Attributes:
        by: ``bands``: each rank has some bands, with their positions and the features bound to them; shared features are
            replicated. ``tokens``: each rank has some positions, and all features are replicated.
        n_bands: of the mask; 0 if it has no bands.
        cuts: rank r has the bands ``cuts[r]`` to ``cuts[r + 1]`` (exclusive); empty if ``by`` is ``tokens``.
    """

    by: Literal["bands", "tokens"]
    n_bands: int
    cuts: tuple[int, ...] = ()

    def bands_of(self, rank: int) -> range:
        """The bands whose features a rank has."""
        return range(self.cuts[rank], self.cuts[rank + 1]) if self.cuts else range(self.n_bands)

    def owner_of(self, band: int) -> int:
        """The rank that owns the features of a band; 0 if all ranks have them."""
        return next(rank for rank, stop in enumerate(self.cuts[1:]) if band < stop) if self.cuts else 0

    def rows_of(self, rank: int, size: int, positions: Tensor, edges: tuple[int, ...]) -> slice:
        """Which of the positions trained on a rank reads.

        Args:
            rank, size: of how many ranks, which one.
            positions: trained on, ascending.
            edges: of the mask's bands; unused if ``by`` is ``tokens``.

        Raises:
            ConfigError: it would have none.
        """
        if self.cuts:
            ends = torch.tensor([edges[self.cuts[rank]], edges[self.cuts[rank + 1]]])
            start, stop = torch.searchsorted(positions, ends).tolist()
        else:
            start, stop = (round(each * len(positions) / size) for each in (rank, rank + 1))
        if start == stop:
            raise ConfigError(
                f"rank {rank} of {size} would have none of the {len(positions)} positions; start fewer ranks"
            )
        return slice(start, stop)


def divide(config: SAEConfig, n_positions: int, size: int) -> Division:
    """How this SAE is divided over ``size`` ranks: by bands if its mask has enough of them, else by tokens.

    Raises:
        ConfigError: it cannot be divided; says why.
    """
    sae = build_sae(config, 1, n_positions, torch.Generator())  # of the smallest width, to look at
    mask, bands = sae.mask, sae.mask.gate.bands
    why = None
    if vars(type(sae)).get("auxiliary_per") is None:
        why = f"{config.architecture} compares the tokens of a batch"
    elif mask.reorders_features or type(mask).wants_usage_at is not PositionalMask.wants_usage_at:
        why = f"the mask {config.mask.family} moves features between positions"
    elif size > n_positions:
        why = f"there are {n_positions} positions"
    if why is not None:
        raise ConfigError(
            f"this SAE cannot be trained on {size} ranks: {why}; train it in one process, or choose another (docs/ranks.md)"
        )
    if bands is None:
        return Division("tokens", 0)
    n_bands = len(bands.sizes)
    cuts = tuple(round(rank * n_bands / size) for rank in range(size + 1))
    by_feature = {sae.b_dec, *mask.parameters(), *(parameter for parameter, _ in sae.feature_axes())}
    owned = [sum(bands.sizes[start:stop]) for start, stop in pairwise(cuts)]
    divisible = (
        mask.gate.only_blocks
        and type(mask).apply_to is PositionalMask.apply_to
        and not list(mask.parameters())
        and by_feature.issuperset(sae.parameters())
    )
    if divisible and size <= n_bands and all(owned):
        return Division("bands", n_bands, cuts)
    return Division("tokens", n_bands)


def part_of(config: SAEConfig, bands: Bands, own_bias: bool, kept: range) -> SAEConfig:
    """The settings of the SAE with the shared features and those of some bands. Positions keep their numbers.

    Args:
        config: of the whole SAE.
        bands: of its mask.
        own_bias: whether each band has its own decoder bias.
        kept: the bands.
    """
    sizes = tuple(size if band in kept else 0 for band, size in enumerate(bands.sizes))
    d_sae = bands.shared + sum(sizes)
    mask = BandMaskConfig(edges=bands.edges, sizes=sizes, own_bias=own_bias, shared=bands.shared / d_sae)
    return config.model_copy(update={"d_sae": d_sae, "mask": mask})


class Pieces:
    """Names the parts of a learner's tensors: those of the shared features, those of each band, and those of the whole.

    Ranks that have the same band call its tensors by the same names, however many bands they have: so that one rank's tensors
    are filled from another's, from a whole SAE's, or from a checkpoint that other ranks wrote.

    Args:
        sae: whole, or the part of a rank.
        bands: whose features it has, in this order after the shared ones.
    """

    def __init__(self, sae: SAE, bands: range) -> None:
        axes = {id(parameter): axis for parameter, axis in sae.feature_axes()}
        self._axis_of = {name: axes[id(each)] for name, each in sae.named_parameters() if id(each) in axes}
        self._bands = bands
        structure = sae.mask.gate.bands
        self._of_bands = structure is not None
        self._by_band = {"b_dec"} if sae.mask.n_decoder_biases > 1 and structure else set[str]()
        sizes = {"shared": sae.d_sae if structure is None else structure.shared}
        if structure is not None:
            sizes |= {f"band.{band}": structure.sizes[band] for band in bands}
        self._sizes = {name: size for name, size in sizes.items() if size}

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of a learner's tensors (see :meth:`Learner.state`) by the names of their pieces."""
        views: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parameter = name.removeprefix("sae.") if name.startswith("sae.") else name.split(".", 2)[-1]
            if name.startswith("adam.step.") or name == "generator":
                views[f"whole/{name}"] = tensor
            elif parameter in self._by_band:
                views |= {f"band.{band}/{name}": tensor[band] for band in self._bands}
            elif parameter in self._axis_of or name == "dead.tokens_since_fired":
                start, axis = 0, self._axis_of.get(parameter, 0)
                for piece, size in self._sizes.items():
                    views[f"{piece}/{name}"] = tensor.narrow(axis, start, size)
                    start += size
            elif not (self._of_bands and parameter.startswith("mask.")):  # which the settings determine
                views[f"whole/{name}"] = tensor
        return views

    def fill(self, tensors: Mapping[str, Tensor], pieces: Mapping[str, Tensor]) -> None:
        """Copy pieces into a learner's tensors, in place."""
        for name, view in self.split(tensors).items():
            view.copy_(pieces[name])
