"""The plan of a study, as written in YAML: a source of activations, and the runs to train and measure on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from scansion.activations import HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError, describe, did_you_mean
from scansion.evals import EvaluationConfig, evaluations
from scansion.evals.reading.training import CountsPositions, fill
from scansion.files import fingerprint
from scansion.lm import BUNDLED_MODEL
from scansion.sae import AnySAEConfig, SAEConfig
from scansion.synth import SynthConfig
from scansion.training import TrainingConfig

Model = TypeVar("Model", bound=BaseModel)
_OWN_KEYS_BEFORE = ("core", "sparse_probing", "position")
_OF_TEXT = ("model", "revision", "hook_point", "lm_dtype", "device", "corpus", "harvest")


def _seeds(given: Any) -> Any:
    """Seeds as a plan may list them; None, of a run that has none of its own, is passed through."""
    if given is None:
        return None
    seeds: list[Any] = list(cast(Sequence[Any], given)) if isinstance(given, list | tuple) else []
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"{seed!r} is no seed; a seed is a whole number from 0 to 2^63 - 1")
    if not seeds:
        raise ValueError(f"{given!r} is no list of seeds; write whole numbers in brackets, like [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is given twice: {seeds}")
    return tuple(seeds)


class ArmPlan(BaseModel):
    """One SAE of a run that compares several."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sae: AnySAEConfig
    training: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the plan's training settings."
    )


class StorePlan(BaseModel):
    """Two stores that are there already, such as those of :meth:`ActivationStore.from_tensors`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Path = Field(description="Folder of the store that runs are trained on.")
    held_out: Path = Field(description="Folder of the store that they are measured on.")


def _stores_in(given: Any) -> Any:
    """A folder alone stands for the stores ``train`` and ``held_out`` in it."""
    return {name: Path(given) / name for name in ("train", "held_out")} if isinstance(given, str | Path) else given


class RunPlan(BaseModel):
    """One entry of a plan: an SAE, or several arms that vary one thing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="Name in tables and figures.")
    changes: str = Field(default="", description="What changes from the baseline, in words.")
    sae: AnySAEConfig | None = None
    training: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the plan's training settings, for all arms."
    )
    arms: dict[str, ArmPlan] = Field(default_factory=dict, description="Name -> arm, instead of `sae`.")
    seeds: Annotated[tuple[int, ...] | None, BeforeValidator(_seeds)] = Field(
        default=None, description="Seeds other than the plan's."
    )
    world: dict[str, Any] | None = Field(
        default=None, description="What differs from the plan's world; runs are compared within a world."
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> RunPlan:
        if (self.sae is None) == (not self.arms):
            raise ValueError(f"run {self.name!r} needs either `sae` or `arms`")
        if len({slug(name) for name in self.arms}) < len(self.arms):
            raise ValueError(f"two arms of {self.name!r} would share a folder: {sorted(self.arms)}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return _without(dump(self), () if self.world is not None else ("world",))

    def parts(self) -> list[tuple[str, SAEConfig, dict[str, Any]]]:
        """Name, SAE and training settings of each arm; one without a name if there is but one."""
        if self.sae is not None:
            return [("", self.sae, {})]
        return [(name, arm.sae, arm.training) for name, arm in self.arms.items()]


@dataclass(frozen=True)
class Arm:
    """One SAE of a plan, to be trained once a seed.

    Attributes:
        run: number of the entry, from 0.
        name: in tables; the entry's, with the arm's after a colon if there are several.
        subfolder: inside the run's folder; ``.`` if the entry has one arm.
        sae, training: settings, before the seed is put in.
        seeds: of weights, masks and the order of the data.
        changes: what changes from the baseline, in words.
        world: the synthetic world it is trained on, before the seed is put in; None for a language model's activations.
    """

    run: int
    name: str
    subfolder: str
    sae: SAEConfig
    training: TrainingConfig
    seeds: tuple[int, ...]
    changes: str
    world: SynthConfig | None = None

    def at_seed(self, seed: int) -> tuple[SAEConfig, TrainingConfig]:
        """Settings at one seed. Arms that share the stream's settings and a seed share their batches."""
        return reseeded(self.sae, seed), self.training.model_copy(update={"seed": seed, "data_seed": seed})

    def world_at(self, seed: int) -> SynthConfig | None:
        """Its world at one seed, which draws other features and other data."""
        return None if self.world is None else self.world.model_copy(update={"seed": seed})

    def settings(self) -> dict[str, Any]:
        """What tells this arm from others, JSON-able; seeds are left out."""
        return {
            **({} if self.world is None else {"world": self.world.model_dump(mode="json", exclude={"seed"})}),
            "sae": reseeded(self.sae, 0).model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", exclude={"seed", "data_seed"}),
        }


class StudyPlan(BaseModel):
    """A whole study: its question, its runs and how they are judged, all written down before the first run.

    Example:
        >>> plan = scansion.load_plan("positional_masking")
        >>> [run.name for run in plan.runs]
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    hypothesis: str = Field(default="", description="What the study asks.")
    primary_metric: str = Field(
        default="fve_without_outliers", description="The figure that decides, as final_info.json calls it."
    )
    minimum_effect: float | None = Field(
        default=None, gt=0, description="Smallest difference in the primary metric that would matter."
    )
    equivalence_margins: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        exclude_if=lambda margins: not margins,  # so that plans from before this setting keep their digest
        description="Other figures -> the smallest difference in each that would matter; notes say equivalent, different or "
        "undecided.",
    )
    stopping_rule: str = Field(default="every run at every seed of the plan", description="When the study ends.")
    max_hours: float | None = Field(default=None, gt=0, description="Runs not begun after so long are not begun.")
    model: str = BUNDLED_MODEL
    revision: str | None = None
    hook_point: str = "layers.5"
    lm_dtype: str = "auto"
    device: str = "auto"
    corpus: CorpusConfig | None = None
    world: dict[str, Any] | None = Field(
        default=None,
        description="Settings of a synthetic world (see SynthConfig), instead of model, hook point and text. Every seed "
        "draws a world of its own.",
    )
    store: Annotated[StorePlan | None, BeforeValidator(_stores_in)] = Field(
        default=None,
        description="Activations that are there already, instead of model, hook point and text: the folders `train` and "
        "`held_out` of two stores, or one folder that holds two of these names; relative to the working directory.",
    )
    harvest: HarvestConfig = HarvestConfig()
    training: TrainingConfig = TrainingConfig()
    evaluations: dict[str, SerializeAsAny[EvaluationConfig]] = Field(
        default_factory=dict,
        validate_default=True,
        description="Name -> settings of each evaluation, as `scansion evaluations` lists them; core is always run.",
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = Field(
        default=(0,), description="Every run is carried out once for each."
    )
    plugins: tuple[Path, ...] = Field(
        default=(),
        description="Python files that register masks, architectures or evaluations of your own; relative to the plan.",
    )
    runs: list[RunPlan] = Field(min_length=1, description="The first is the baseline.")

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, settings: Any) -> Any:
        """Plans used to have three evaluations, each under a key of its own; run folders hold such plans."""
        if not isinstance(settings, dict):
            return settings
        now = _with_evaluations(cast(dict[str, Any], settings))
        return now if now.get("world") is None else _on_a_world(now)

    @field_validator("evaluations", mode="before")
    @classmethod
    def _parse_evaluations(cls, settings: Any) -> Any:
        return (
            evaluations.parse_all(cast(dict[str, Any], settings or {}))
            if isinstance(settings, dict | None)
            else settings
        )

    @model_validator(mode="after")
    def _check_source(self) -> StudyPlan:
        if self.world is not None and self.store is not None:
            raise ValueError("a plan has a world or a store, not both")
        if self.world is None:
            if self.corpus is None and self.store is None:
                raise ValueError("a plan needs a corpus, or a world of synthetic activations, or a store")
            if on_worlds := [run.name for run in self.runs if run.world is not None]:
                raise ValueError(f"{', '.join(on_worlds)}: a run can change the plan's world only if the plan has one")
            if self.store is not None:
                self._refuse_text("a store has been made of it already")
            return self
        self._refuse_text("a world has neither")
        for arm in self.arms():
            if not arm.training.use_position_0:
                raise ValueError("training.use_position_0: position 0 of a world is like any other; remove it")
            if seeded := _seed_given(arm.sae, "sae"):
                raise ValueError(f"run {arm.name!r}: {seeded} is set by the study; list seeds in 'seeds'")
        return self

    def _refuse_text(self, why: str) -> None:
        for name in _OF_TEXT:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of a language model or its text, and {why}; remove it")

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Only what belongs to the plan's source. Plans on text keep the digest they had before there were others."""
        sources = {"world": ("world",), "store": ("store",), "corpus": _OF_TEXT}
        own = next((name for name in ("world", "store") if getattr(self, name) is not None), "corpus")
        return _without(dump(self), [name for source, names in sources.items() if source != own for name in names])

    @model_validator(mode="after")
    def _check_runs(self) -> StudyPlan:
        arms = self.arms()
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names) or len({arm.name for arm in arms}) < len(arms):
            raise ValueError(f"two runs have the same name: {sorted(names)}")
        with_0 = [arm.name for arm in arms if arm.training.use_position_0]
        unset = [name for name, one in self.evaluations.items() if _follows_position_0(one)]
        if unset and 0 < len(with_0) < len(arms):
            raise ValueError(
                f"{', '.join(with_0)} use position 0 in training and the other runs do not: set use_position_0 of "
                f"{', '.join(unset)} under `evaluations`, so that all are measured on the same tokens"
            )
        measured = [figure for one in evaluations.build(self.evaluations).values() for figure in one.measured()]
        if self.primary_metric not in measured:
            raise ValueError(
                f"primary_metric {self.primary_metric!r} is not among what this plan measures"
                + (did_you_mean(self.primary_metric, measured) or f": {', '.join(measured)}")
            )
        if unknown := [name for name in self.equivalence_margins if name not in measured]:
            raise ValueError(f"equivalence_margins: {', '.join(unknown)} is not among what this plan measures")
        return self

    def margin(self, figure: str) -> float | None:
        """The smallest difference in a figure that would matter, if the plan names one."""
        if figure == self.primary_metric and self.minimum_effect is not None:
            return self.minimum_effect
        return self.equivalence_margins.get(figure)

    def arms(self) -> list[Arm]:
        """Every arm of every run, in the plan's order."""
        return [
            Arm(
                run=number,
                name=f"{run.name}: {name}" if name else run.name,
                subfolder=slug(name) if name else ".",
                sae=sae,
                training=TrainingConfig.model_validate({**self.training.model_dump(), **run.training, **training}),
                seeds=run.seeds or self.seeds,
                changes=run.changes,
                world=self._world_of(run),
            )
            for number, run in enumerate(self.runs)
            for name, sae, training in run.parts()
        ]

    def _world_of(self, run: RunPlan) -> SynthConfig | None:
        if self.world is None:
            return None
        settings = {**self.world, **(run.world or {})}
        if "seed" in settings:
            raise ValueError("world.seed is set by the study; list seeds in 'seeds'")
        try:
            return SynthConfig.model_validate(settings)
        except ValidationError as error:
            raise ValueError(f"world of run {run.name!r}: {describe(error, 'world', SynthConfig)}") from error

    def with_runs(self, runs: Sequence[Mapping[str, Any]]) -> StudyPlan:
        """The plan with further runs, as they would stand in its file, after its own.

        Raises:
            ConfigError: a key is unknown, missing or out of range.
        """
        if not runs:
            return self
        try:
            return StudyPlan.model_validate({**self.model_dump(), "runs": [*self.runs, *runs]})
        except ValidationError as error:
            raise ConfigError(f"a new run of {self.name}: {describe(error, model=StudyPlan)}") from error

    def with_settings_filled(self) -> StudyPlan:
        """The plan with those settings of evaluations written out that follow training: what it will do is unchanged."""
        first = self.arms()[0]
        trained: dict[str, Any] = {"use_position_0": first.training.use_position_0}
        if source := first.world or self.corpus:
            trained["context_length"] = source.context_length
        return self.model_copy(
            update={"evaluations": {name: fill(config, trained) for name, config in self.evaluations.items()}}
        )

    @property
    def digest(self) -> str:
        """A 32-digit name for everything the plan says."""
        # Plans keep the name they had before plans could have plugins, and before settings could follow training.
        dumped = self.with_settings_filled().model_dump(mode="json", exclude=None if self.plugins else {"plugins"})
        return fingerprint(dumped)


def _with_evaluations(settings: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in settings.items() if name not in _OWN_KEYS_BEFORE}
    before = {name: settings[name] for name in _OWN_KEYS_BEFORE if settings.get(name) is not None}
    now: dict[str, Any] = rest.get("evaluations") or {}
    if twice := sorted(before.keys() & now.keys()):
        raise ValueError(f"{', '.join(twice)} is given twice; keep what is under `evaluations`")
    return {**rest, "evaluations": {**before, **now}} if before else rest


def _follows_position_0(config: EvaluationConfig) -> bool:
    return isinstance(config, CountsPositions) and config.use_position_0 is None


def _on_a_world(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what goes without saying on a synthetic world: position 0 counts, and the truth is known."""
    training: Any = settings.get("training")
    measured: Any = settings.get("evaluations")
    found = dict(settings)
    if isinstance(training, dict | None):
        found["training"] = {"use_position_0": True, **(training or {})}
    if isinstance(measured, dict | None):
        given = cast(dict[str, Any], measured or {})
        core: Any = given.get("core") or {}
        if isinstance(core, dict):
            core = {"loss_contexts": 0, **cast(dict[str, Any], core)}
        found["evaluations"] = {"synthetic": None, **given, "core": core}
    return found


def _without(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _seed_given(config: BaseModel, path: str) -> str | None:
    """Where a config holds a seed other than the default, if anywhere."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "seed" and value != field.default:
            return f"{path}.seed"
        if isinstance(value, BaseModel) and (where := _seed_given(value, f"{path}.{name}")):
            return where
    return None


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "arm"


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
