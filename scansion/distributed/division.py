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
from scansion.sae.architectures.topk import TopKConfig


@dataclass(frozen=True)
class Division:
    """How a run is divided over ranks.

    Attributes:
        by: ``bands``: each rank has some bands, with their positions and the features bound to them; shared features are
            replicated. ``tokens``: each rank has some positions, and all features are replicated. ``features``: each rank
            has some features, and all positions.
        n_groups: how many groups of features there are: the bands of the mask, 0 if it has none; or :attr:`sizes`.
        cuts: rank r has the groups ``cuts[r]`` to ``cuts[r + 1]`` (exclusive); empty if ``by`` is ``tokens``.
        sizes: if ``by`` is ``features``, how many features each group has.
    """

    by: Literal["bands", "tokens", "features"]
    n_groups: int
    cuts: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def groups_of(self, rank: int) -> range:
        """The groups whose features a rank has."""
        return range(self.cuts[rank], self.cuts[rank + 1]) if self.cuts else range(self.n_groups)

    def owner_of(self, group: int) -> int:
        """The rank that owns the features of a group; 0 if all ranks have them."""
        return next(rank for rank, stop in enumerate(self.cuts[1:]) if group < stop) if self.cuts else 0

    def rows_of(self, rank: int, size: int, positions: Tensor, edges: tuple[int, ...]) -> slice:
        """Which of the positions trained on a rank reads.

        Args:
            rank, size: of how many ranks, which one.
            positions: trained on, ascending.
            edges: of the mask's bands; read if ``by`` is ``bands``.

        Raises:
            ConfigError: it would have none.
        """
        if self.by == "features":
            return slice(0, len(positions))
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


Divide = Literal["auto", "features"]
"""What is divided over ranks: bands if there are enough, else tokens; or features."""
GROUPS = 256
"""Into how many groups features are cut where they are divided: a checkpoint has them by group, for any number of ranks."""


def division_of(config: SAEConfig, n_positions: int, size: int, what: Divide = "auto") -> Division:
    """How this SAE is divided over ``size`` ranks.

    Args:
        config: of the SAE.
        n_positions: context length L.
        size: number of ranks.
        what: bands if the mask has enough of them, else tokens; or features.

    Raises:
        ConfigError: it cannot be divided; says why.
    """
    if what == "features":
        return _by_features(config, size)
    sae = build_sae(config, 1, n_positions, torch.Generator())  # of the smallest width, to look at
    mask, bands = sae.mask, sae.mask.gate.bands
    why = None
    if sae.window > 1:
        why = f"{config.architecture} reads windows of tokens"
    elif vars(type(sae)).get("auxiliary_per") is None:
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


def _by_features(config: SAEConfig, size: int) -> Division:
    n_groups = min(GROUPS, config.d_sae)
    edges = [round(group * config.d_sae / n_groups) for group in range(n_groups + 1)]
    cuts = tuple(round(rank * n_groups / size) for rank in range(size + 1))
    smallest = min(edges[stop] - edges[start] for start, stop in pairwise(cuts))
    why = None
    if type(config) is not TopKConfig:
        why = f"its architecture is {config.architecture}, and only topk can be divided so"
    elif config.mask.family != "none":
        why = "it has a mask"
    elif smallest < config.k:
        why = f"a rank would have {smallest} features, fewer than k"
    if why is not None:
        raise ConfigError(
            f"this SAE cannot be divided by features over {size} ranks: {why}; leave out --divide (docs/ranks.md)"
        )
    return Division("features", n_groups, cuts, tuple(stop - start for start, stop in pairwise(edges)))


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
    """Names the parts of a learner's tensors: those of the shared features, of each group, and of the whole.

    Ranks that have the same group call its tensors by the same names, however many groups they have: so that one rank's tensors
    are filled from another's, from a whole SAE's, or from a checkpoint that other ranks wrote.

    Args:
        sae: whole, or the part of a rank.
        division: of the run.
        groups: whose features it has, in this order after the shared ones.
    """

    def __init__(self, sae: SAE, division: Division, groups: range) -> None:
        axes = {id(parameter): axis for parameter, axis in sae.feature_axes()}
        self._axis_of = {name: axes[id(each)] for name, each in sae.named_parameters() if id(each) in axes}
        self._groups = groups
        structure = sae.mask.gate.bands
        self._of_bands = structure is not None
        self._by_band = {"b_dec"} if sae.mask.n_decoder_biases > 1 and structure else set[str]()
        sizes = {"shared": sae.d_sae if structure is None else structure.shared}
        if structure is not None:
            sizes |= {f"band.{band}": structure.sizes[band] for band in groups}
        if division.by == "features":
            sizes = {f"features.{group}": division.sizes[group] for group in groups}
        self._sizes = {name: size for name, size in sizes.items() if size}

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of a learner's tensors (see :meth:`Learner.state`) by the names of their pieces."""
        views: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parameter = name.removeprefix("sae.") if name.startswith("sae.") else name.split(".", 2)[-1]
            if name.startswith("adam.step.") or name == "generator":
                views[f"whole/{name}"] = tensor
            elif parameter in self._by_band:
                views |= {f"band.{band}/{name}": tensor[band] for band in self._groups}
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
