"""The planted dictionary: true directions, true position profiles, and which features tend to fire together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.synth.config import SynthConfig
from scansion.synth.profiles import BOUND_KINDS, Kind, draw_profiles, firing_rates


@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """The true features that an SAE should recover. Feature indices carry no meaning.

    Attributes:
        config: the world it was planted from.
        directions: unit rows, drawn uniformly on the sphere: with d_in dimensions, two have a cosine of 0 on average
            and 1 / sqrt(d_in) root mean square.
        profiles: probability that a feature fires at a position, in [0, ``max_probability``] (float64).
        kinds: ``uniform`` for unbound features, else ``band``, ``single`` or ``periodic``.
        groups: the group a feature belongs to.
    """

    config: SynthConfig
    directions: Float[Tensor, "n_true d_in"]
    profiles: Float[Tensor, "L n_true"]
    kinds: tuple[Kind, ...]
    groups: Int[Tensor, "n_true"]

    @classmethod
    def plant(cls, config: SynthConfig) -> PlantedDictionary:
        """Draw everything from one generator, seeded by ``config.seed``.

        Directions, groups and the order of frequencies are drawn first, so worlds that differ only in ``bound`` share them.

        Raises:
            ConfigError: no profile fits some feature's rate.
        """
        generator = config.generator("dictionary")
        directions = torch.randn(config.n_features, config.d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        groups = torch.randperm(config.n_features, generator=generator) // config.group_size
        rank_of = torch.randperm(config.n_features, generator=generator)
        kinds, profiles = draw_profiles(config, firing_rates(config), generator)
        return cls(
            config=config,
            directions=directions,
            profiles=profiles[:, rank_of].contiguous(),
            kinds=tuple(kinds[rank] for rank in rank_of.tolist()),
            groups=groups,
        )

    @property
    def is_bound(self) -> Bool[Tensor, "n_true"]:
        """True where a feature is tied to positions."""
        return self.of_kinds(*BOUND_KINDS)

    @property
    def rates(self) -> Float[Tensor, "n_true"]:
        """Firings per token, averaged over positions."""
        return self.profiles.mean(dim=0)

    def of_kinds(self, *kinds: Kind) -> Bool[Tensor, "n_true"]:
        """True where a feature is of one of these kinds."""
        return torch.tensor([kind in kinds for kind in self.kinds])
