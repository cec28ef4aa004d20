"""What a study has on disk: run folders, each with the plan it was begun under and what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scansion.activations import ActivationStore
from scansion.cards import card
from scansion.errors import ConfigError, DamagedError
from scansion.evals import EvaluationConfig, LoadedSAE, evaluations
from scansion.evals.statistics import Estimate
from scansion.files import expanded
from scansion.pipeline.existing import ExistingSpec
from scansion.pipeline.planted import PlantedSpec, Source
from scansion.pipeline.run_results import RunResults
from scansion.pipeline.stores import HarvestSpec, stores_dir
from scansion.plugins import missing_plugins
from scansion.records import read_json, require_known_format, write_json
from scansion.sae import load_sae
from scansion.study.compare.comparison import by_world, figures_of
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text
from scansion.study.final_info import FINAL_INFO, ArmInfo, read_final_info
from scansion.study.plan import Arm, StudyPlan

Part = TypeVar("Part", bound=BaseModel)
_PLAN = "plan.json"


class _Earlier(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    registered_at: str


class Registration(BaseModel):
    """The plan a run belongs to, written into its folder before any run of the study starts.

    Attributes:
        digest: of the plan.
        run: number of the run's entry.
        registered_at: when, in UTC.
        earlier: plans the run was registered under before, if the plan was changed.
        plan: all that the plan says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    run: int
    registered_at: str
    earlier: list[_Earlier] = Field(default_factory=list[_Earlier])
    plan: StudyPlan


@dataclass(frozen=True)
class ArmRecord:
    """One arm of a run: what the plan says of it, and what is known.

    Attributes:
        arm: settings.
        folder: the run's.
        info: figures, status, provenance and costs.
    """

    arm: Arm
    folder: Path
    info: ArmInfo

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.arm.name

    @property
    def run(self) -> int:
        """Number of the run."""
        return self.arm.run

    @property
    def seed_folders(self) -> dict[int, Path]:
        """Seed -> folder of its training run and evaluations, of the seeds that are finished."""
        return {seed: seed_folder(self.folder, self.arm, seed) for seed in self.info.seeds}

    def evaluations(self) -> dict[int, RunResults]:
        """Seed -> its results, read from disk: of the evaluations that the plan names."""
        configs = read_registration(self.folder).plan.evaluations
        return {seed: read_results(folder, configs) for seed, folder in self.seed_folders.items()}

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        shown = {figure(name).label: figure_text(one, figure(name)) for name, one in _headline(self).items()}
        facts = {
            "folder": str(self.folder),
            "status": "; ".join([self.info.status, *self.info.reasons]),
            "seeds": ", ".join(map(str, self.info.seeds)),
            "changes": self.arm.changes,
        }
        return card(f"run {self.run}: {self.name}", facts | shown)


@dataclass(frozen=True)
class StudyRecord:
    """A study's folder.

    Attributes:
        folder: that holds run_0, run_1, ...
        plan: the newest.
        arms: all, or of one world.
        world: what sets the world of these arms apart from the study's others; empty if they are all there are.

    Example:
        >>> record = scansion.StudyRecord.open("runs/demo")
        >>> [(arm.name, arm.info.status) for arm in record.arms]
    """

    folder: Path
    plan: StudyPlan
    arms: list[ArmRecord]
    world: str = ""

    @classmethod
    def open(cls, folder: Path | str) -> StudyRecord:
        """Read ``folder/run_*``.

        Raises:
            ConfigError: there is no run, or one that is damaged.
        """
        folder = expanded(folder)
        numbered = [(int(m[1]), path) for path in folder.glob("run_*") if (m := re.fullmatch(r"run_(\d+)", path.name))]
        runs = [path for _, path in sorted(numbered) if (path / _PLAN).is_file()]
        if not runs:
            raise ConfigError(
                f"{folder} holds no study: there is no run_N with a {_PLAN}; `scansion study run` makes one"
            )
        newest = max((read_registration(run) for run in runs), key=lambda one: one.registered_at)
        return cls(folder, newest.plan, [arm for run in runs for arm in open_run(run)])

    def _repr_html_(self) -> str:
        """A card for notebooks: every arm with the figures of a headline."""
        found = [(arm, _headline(arm)) for arm in self.arms]
        names = list(dict.fromkeys(name for _, figures in found for name in figures))
        rows = [
            [arm.name, arm.info.status, *(figure_text(figures.get(name), figure(name)) for name in names)]
            for arm, figures in found
        ]
        facts = {"folder": str(self.folder), "plan": self.plan.digest[:12], "asked": self.plan.hypothesis}
        return card(self.plan.name, facts, [["run", "status", *(figure(name).label for name in names)], *rows])

    def by_world(self) -> list[StudyRecord]:
        """The study in parts that may be compared within themselves: one for each synthetic world, else all of it."""
        return [
            replace(self, arms=[arm for arm in self.arms if arm.name in infos], world=world)
            for world, infos in by_world({arm.name: arm.info for arm in self.arms}).items()
        ]

    def held_out(self) -> ActivationStore:
        """The activations the runs were measured on; harvested again if they are gone."""
        for arm in self.arms:
            for result in arm.evaluations().values():
                key = str(result.core.data["store"])
                for folder in stores_dir().glob(f"*-held_out-{key[:12]}"):
                    store = ActivationStore(folder)
                    if store.manifest.key == key:
                        return store
        first = self.arms[0].arm
        return source_at(self.plan, first, first.seeds[0]).build().held_out


def _headline(arm: ArmRecord) -> dict[str, Estimate]:
    found = figures_of(arm.info)
    return {name: one for name, one in found.items() if figure(name).headline and one.value is not None}


def source_at(plan: StudyPlan, arm: Arm, seed: int) -> Source:
    """Where an arm's activations come from at one seed."""
    if plan.store is not None:
        return ExistingSpec(plan.store.train, plan.store.held_out)
    world = arm.world_at(seed)
    return source_of(plan) if world is None else PlantedSpec(world)


def source_of(plan: StudyPlan) -> HarvestSpec:
    """Where the activations of a plan on text come from.

    Raises:
        ConfigError: the plan is on synthetic worlds or stores.
    """
    if plan.corpus is None:
        raise ConfigError(f"the plan {plan.name!r} is on synthetic worlds or stores: it reads no text")
    return HarvestSpec(
        model=plan.model,
        hook_point=plan.hook_point,
        corpus=plan.corpus,
        harvest=plan.harvest,
        revision=plan.revision,
        lm_dtype=plan.lm_dtype,
        device=plan.device,
    )


def seed_folder(run: Path, arm: Arm, seed: int) -> Path:
    """Where one arm of a run is trained and measured at one seed."""
    return run / arm.subfolder / f"seed_{seed}"


def register(plan: StudyPlan, run: int, folder: Path) -> None:
    """Write the plan into a run's folder. An earlier plan's digest is kept beside the new one."""
    earlier: list[_Earlier] = []
    if (folder / _PLAN).is_file():
        there = read_registration(folder)
        # Plans and not hashes: an earlier version wrote the same plan in another layout, all settings written out.
        if there.plan.with_settings_filled() == plan.with_settings_filled() and there.run == run:
            return
        earlier = [*there.earlier, _Earlier(digest=there.digest, registered_at=there.registered_at)]
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    registration = Registration(digest=plan.digest, run=run, registered_at=now, earlier=earlier, plan=plan)
    write_json(folder / _PLAN, registration.model_dump(mode="json"))


def read_registration(folder: Path) -> Registration:
    """The plan in a run's folder.

    Raises:
        ConfigError: there is none, or it is not one of ours.
    """
    path = folder / _PLAN
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run of a study: it has no {_PLAN}")
    return _validated(path, Registration)


def open_run(folder: Path) -> list[ArmRecord]:
    """Every arm of one run.

    Raises:
        ConfigError: the folder is not a run of a study.
    """
    registration = read_registration(folder)
    infos = read_own_final_info(folder, registration) if (folder / FINAL_INFO).is_file() else {}
    arms = [arm for arm in registration.plan.arms() if arm.run == registration.run]
    why = [f"{FINAL_INFO} says nothing of it"]
    return [
        ArmRecord(arm, folder, infos.get(arm.name) or ArmInfo(reasons=why, provenance=arm.settings())) for arm in arms
    ]


def read_own_final_info(folder: Path, registration: Registration) -> dict[str, ArmInfo]:
    """``final_info.json`` of a run whose plan is known.

    Raises:
        ConfigError: there is none, or it is damaged.
        DamagedError: it is of another run, or of a plan that this run never had.
    """
    infos = read_final_info(folder)
    plans = {registration.digest, *(one.digest for one in registration.earlier)}
    for name, info in infos.items():
        run, plan = info.provenance.get("run", registration.run), info.provenance.get("plan", registration.digest)
        if run != registration.run or plan not in plans:
            raise DamagedError(
                f"{folder / FINAL_INFO} is not of this run: it has {name!r}, which is run {run} of the plan "
                f"{str(plan)[:12]}, and {_PLAN} names run {registration.run} of {registration.digest[:12]}; "
                "run the study again to write it again"
            )
    return infos


def infos_of(folder: Path) -> dict[str, ArmInfo]:
    """Arm name -> what ``final_info.json`` says of it; a run of a study that has none, or an arm it lacks, is unfinished.

    Raises:
        ConfigError: the folder is not a run of a study.
    """
    if (folder / FINAL_INFO).is_file() or not (folder / _PLAN).is_file():
        return read_final_info(folder)
    return {arm.name: arm.info for arm in open_run(folder)}


def open_runs(folders: Sequence[Path]) -> list[ArmRecord]:
    """Every arm of some runs, in this order."""
    return [arm for folder in folders for arm in open_run(folder)]


def read_results(folder: Path, configs: Mapping[str, EvaluationConfig]) -> RunResults:
    """The results in a trained run's ``evals``, of these evaluations as far as they have been run.

    Raises:
        ConfigError: core figures are missing, or a file does not hold a result of this version.
        DamagedError: a file holds a result of another SAE than the one in the folder.
    """
    files = {
        name: (folder / "evals" / f"{evaluation.file}.json", evaluation.result)
        for name, evaluation in evaluations.build(configs).items()
    }
    if not files["core"][0].is_file():
        raise ConfigError(f"{folder} has not been evaluated: there is no {files['core'][0]}")
    results = {name: _validated(file, kind) for name, (file, kind) in files.items() if file.is_file()}
    # The SAE itself may have been deleted to save space; the results then have to be of one SAE.
    trained = folder / "sae"
    of = LoadedSAE(folder.name, *load_sae(trained)).fingerprint if trained.is_dir() else results["core"].sae_fingerprint
    for name, result in results.items():
        if result.sae_fingerprint != of:
            raise DamagedError(
                f"{files[name][0]} holds results of another SAE than the one in {trained}; run the study again, which "
                "measures what does not belong there again"
            )
    return RunResults(results)


def _validated(path: Path, kind: type[Part]) -> Part:
    try:
        return kind.model_validate(require_known_format(read_json(path), path))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ConfigError(
            f"{path} does not fit this version ({why})"
            + (
                missing_plugins(config.parent for config in sorted(path.parent.glob("**/config.yaml")))
                or "; if it names a mask family of your own, register that first, else delete it and run the study again"
            )
        ) from error
