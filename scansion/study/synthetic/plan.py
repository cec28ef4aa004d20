"""The plan of a synthetic study, as written in YAML: worlds x SAE variants x seeds, each seed changing all that is drawn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scansion.errors import ConfigError, ScansionError, describe
from scansion.sae import SAEConfig, build_sae
from scansion.study.loading import read_plan
from scansion.study.plan import ArmPlan, reseeded
from scansion.synth import PlantedDictionary, SynthConfig
from scansion.training import TrainingConfig

# The study sets these itself: seeds so that all draws change together, and position 0 because it is like any other.
_SET_BY_STUDY = {"world": ("seed",), "training": ("seed", "data_seed", "use_position_0")}


class WorldPlan(BaseModel):
    """One world of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name in tables and figures.")
    world: dict[str, Any] = Field(default_factory=dict, description="What differs from the study's world settings.")


class VariantPlan(ArmPlan):
    """One SAE that every world is given to."""

    name: str = Field(min_length=1, description="Name in tables and figures.")


class SyntheticPlan(BaseModel):
    """A whole synthetic study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1, description="Each gives new worlds, initial weights and mask draws.")
    world: dict[str, Any] = Field(default_factory=dict, description="Settings of all worlds; see SynthConfig.")
    worlds: tuple[WorldPlan, ...] = Field(min_length=1)
    training: dict[str, Any] = Field(default_factory=dict, description="Settings of all runs; see TrainingConfig.")
    reference: str = Field(description="The variant that the others are compared with, seed by seed.")
    variants: tuple[VariantPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> SyntheticPlan:
        for what, names in (
            ("worlds", [world.name for world in self.worlds]),
            ("variants", [variant.name for variant in self.variants]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} given twice")
        if self.reference not in [variant.name for variant in self.variants]:
            raise ValueError(f"reference: there is no variant {self.reference!r}")
        for variant in self.variants:
            if seeded := _seeds_given(variant.sae, "sae"):
                raise ValueError(f"variant {variant.name!r}: {seeded} is set by the study; list seeds in 'seeds'")
            with _naming(f"variant {variant.name!r}"):
                self.training_config(variant, 0)
        for world in self.worlds:
            with _naming(f"world {world.name!r}"):
                self.world_config(world, 0)
        return self

    def world_config(self, world: WorldPlan, seed: int) -> SynthConfig:
        """A world of one seed."""
        return SynthConfig.model_validate({**_allowed("world", {**self.world, **world.world}), "seed": seed})

    def training_config(self, variant: VariantPlan, seed: int) -> TrainingConfig:
        """How a variant is trained with one seed."""
        settings = _allowed("training", {**self.training, **variant.training})
        return TrainingConfig.model_validate({**settings, "seed": seed, "data_seed": seed, "use_position_0": True})

    @staticmethod
    def sae_config(variant: VariantPlan, seed: int) -> SAEConfig:
        """A variant's SAE, every seed in it (of a mask's draw, say) being this one."""
        return reseeded(variant.sae, seed)

    def check(self) -> None:
        """Plant every dictionary and build every SAE once: seconds that find what the settings alone do not show.

        Raises:
            ConfigError: profiles cannot carry the rates, a mask does not fit the contexts, or the like.
        """
        for world in self.worlds:
            with _naming(f"world {world.name!r}"):
                configs = [self.world_config(world, seed) for seed in self.seeds]
                for config in configs:
                    PlantedDictionary.plant(config)
            for variant in self.variants:
                with _naming(f"variant {variant.name!r} in world {world.name!r}"):
                    sae = self.sae_config(variant, self.seeds[0])
                    build_sae(sae, configs[0].d_in, configs[0].context_length, torch.Generator().manual_seed(0))


def load_synthetic_plan(path: Path | str, seeds: Sequence[int] = ()) -> SyntheticPlan:
    """Read a plan and check all of it.

    Args:
        path: a YAML file, or the name of a bundled plan.
        seeds: used instead of the plan's, if there are any.

    Raises:
        ConfigError: there is no such file, it is not YAML, or something in it is unknown, missing, out of range or
            does not fit the rest.
    """
    written = read_plan(path)
    if isinstance(written, dict) and seeds:
        written["seeds"] = list(seeds)
    try:
        plan = SyntheticPlan.model_validate(written)
        plan.check()
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    except ScansionError as error:
        raise ConfigError(f"{path}: {error}") from error
    return plan


@contextmanager
def _naming(what: str) -> Generator[None]:
    """Say in an error's one line which entry of the plan it is about."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{what}: {describe(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def _allowed(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    for name in _SET_BY_STUDY[section]:
        if name in settings:
            raise ValueError(f"{section}.{name} is set by the study; remove it")
    return settings


def _seeds_given(model: BaseModel, path: str) -> str | None:
    """Where in a config a seed other than the default was written down, if anywhere."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if name == "seed" and value != type(model).model_fields[name].default:
            return f"{path}.seed"
        if isinstance(value, BaseModel) and (found := _seeds_given(value, f"{path}.{name}")):
            return found
    return None
