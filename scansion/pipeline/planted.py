"""A synthetic world as a source of activations: two planted stores, and neither text nor a language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scansion.errors import ConfigError
from scansion.lm import LanguageModel
from scansion.pipeline.existing import ExistingSpec
from scansion.pipeline.stores import HarvestSpec, Stores, stores_dir
from scansion.synth import PlantedDictionary, SynthConfig, plant_store, planted_identity
from scansion.synth.generation import SPLITS, Split
from scansion.synth.store import planted_bytes


@dataclass(frozen=True)
class PlantedSpec:
    """One world at one seed. Its stores go to the cache, under names that hold their keys, so that equal worlds share them."""

    world: SynthConfig

    @property
    def context_length(self) -> int:
        """Positions in a context."""
        return self.world.context_length

    @property
    def lm(self) -> LanguageModel:
        """Raises :class:`ConfigError`: there is no language model."""
        raise ConfigError("activations made from known features have no language model")

    def assets(self) -> list[str]:
        """No bundled asset is read."""
        return []

    def check(self) -> int:
        """Plant the dictionary, which takes milliseconds, and return the width of the activations.

        Raises:
            ConfigError: the profiles cannot carry the firing rates.
        """
        PlantedDictionary.plant(self.world)
        return self.world.d_in

    def missing_bytes(self) -> int:
        """About what those stores take on disk that are not there yet."""
        return sum(planted_bytes(self.world, split) for split in SPLITS if not self._folder(split).exists())

    def build(self) -> Stores:
        """Generate both stores, or reuse what is on disk."""
        planted = PlantedDictionary.plant(self.world)
        train, held_out = (plant_store(planted, split, self._folder(split)) for split in SPLITS)
        return Stores(train, held_out)

    def _folder(self, split: Split) -> Path:
        identity = planted_identity(self.world, split)
        return stores_dir() / f"{identity.model}-{identity.hook_point}-{split}-{identity.key[:12]}"


Source = HarvestSpec | PlantedSpec | ExistingSpec
