"""The plan of a study, as written in YAML: one source of activations, and the runs to train and measure on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scansion.activations import HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError
from scansion.evals.core import CoreConfig
from scansion.evals.position import PositionConfig, offset_for
from scansion.evals.sparse_probing import SparseProbingConfig
from scansion.lm import BUNDLED_MODEL
from scansion.sae import AnySAEConfig
from scansion.training import TrainingConfig

Model = TypeVar("Model", bound=BaseModel)


class RunPlan(BaseModel):
    """One entry of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name in tables and figures.")
    sae: AnySAEConfig
    training: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the plan's training settings."
    )


class StudyPlan(BaseModel):
    """A whole study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    model: str = BUNDLED_MODEL
    revision: str | None = None
    hook_point: str = "layers.5"
    lm_dtype: str = "auto"
    device: str = "auto"
    corpus: CorpusConfig
    harvest: HarvestConfig = HarvestConfig()
    training: TrainingConfig = TrainingConfig()
    core: CoreConfig = CoreConfig()
    sparse_probing: SparseProbingConfig | None = None
    position: PositionConfig | None = None
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="`scansion study` carries the runs out once for each of these."
    )
    runs: list[RunPlan] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_runs(self) -> StudyPlan:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"two runs have the same name: {sorted(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed is given twice: {list(self.seeds)}")
        if self.position and self.corpus.layout == "packed":
            raise ValueError("position is measured on contexts of one document each: set corpus.layout to 'documents'")
        if self.position and self.position.replaced_contexts:
            offset_for(self.corpus.context_length, self.position.offset)
        for run in self.runs:
            self.training_of(run)
        return self

    def training_of(self, run: RunPlan) -> TrainingConfig:
        """The plan's training settings with the run's own on top."""
        return TrainingConfig.model_validate({**self.training.model_dump(), **run.training})

    def at_seed(self, seed: int) -> StudyPlan:
        """The same plan with this seed for weights, masks and the order of the data; runs still share their data."""

        def seeded(run: RunPlan) -> RunPlan:
            own = {name: value for name, value in run.training.items() if name not in ("seed", "data_seed")}
            return run.model_copy(update={"training": own, "sae": reseeded(run.sae, seed)})

        return self.model_copy(
            update={
                "seeds": (seed,),
                "training": self.training.model_copy(update={"seed": seed, "data_seed": seed}),
                "runs": [seeded(run) for run in self.runs],
            }
        )


def load_plan(path: Path) -> StudyPlan:
    """Read a plan.

    Raises:
        ConfigError: there is no such file, it is not YAML, or a key is unknown, missing or out of range.
    """
    try:
        return StudyPlan.model_validate(read_plan(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error


def read_plan(path: Path) -> Any:
    """What a plan's file says, not yet checked.

    Raises:
        ConfigError: there is no such file, or it is not YAML.
    """
    if not path.is_file():
        raise ConfigError(f"there is no plan at {path}")
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def reseeded(config: Model, seed: int) -> Model:
    """The same config with this seed wherever it has one, however deep (a mask's, say)."""
    changes: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "seed":
            changes[name] = seed
        elif isinstance(value, BaseModel):
            changes[name] = reseeded(value, seed)
    return config.model_copy(update=changes)


def describe(error: ValidationError) -> str:
    """A validation error in one line: where and what, for each mistake."""
    return "; ".join(
        f"{'.'.join(str(part) for part in mistake['loc']) or 'plan'}: {mistake['msg']}" for mistake in error.errors()
    )
