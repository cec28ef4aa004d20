"""What a report is about: arms with their seeds, compared; a study's, or loose runs as arms of one seed each."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.study.compare.comparison import Comparison, compare, figures_of
from scansion.study.final_info import ArmInfo, summarise_seeds
from scansion.study.plan import StudyPlan
from scansion.study.record import StudyRecord


@dataclass(frozen=True, eq=False)
class ReportArm:
    """One arm.

    Attributes:
        name: in tables and figures.
        info: status, figures over seeds, provenance and costs.
        folders: seed -> folder of its training run, of the seeds that are finished.
        evaluations: seed -> its results.
        changes: what changes from the baseline, in words.
    """

    name: str
    info: ArmInfo
    folders: dict[int, Path]
    evaluations: dict[int, RunResults]
    changes: str = ""

    @property
    def results(self) -> list[RunResults]:
        """The results of all its seeds."""
        return list(self.evaluations.values())

    def figures(self) -> dict[str, Estimate]:
        """Every figure with its interval: over seeds, or where there is one seed, what its evaluation says."""
        found = figures_of(self.info)
        return {**found, **self.results[0].figures()} if len(self.results) == 1 else found


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: its heading.
        arms: all, in the order of the table.
        comparison: of them.
        held_out: the activations they were measured on.
        plan: of a study; None for loose runs.
        commands: what was typed to get here.
    """

    title: str
    arms: list[ReportArm]
    comparison: Comparison
    held_out: ActivationStore
    plan: StudyPlan | None
    commands: list[str]

    @property
    def sound(self) -> list[ReportArm]:
        """The arms that may be compared: the only ones drawn."""
        names = {arm.name for arm in self.comparison.arms}
        return [arm for arm in self.arms if arm.name in names and arm.evaluations]

    @property
    def band_note(self) -> str:
        """What the band around a line means; nothing where there are no bands."""
        return "" if self.one_seed else " The band is the range over seeds."

    @property
    def one_seed(self) -> bool:
        """Whether every arm has one seed, so that intervals are not over seeds."""
        return all(len(arm.evaluations) <= 1 for arm in self.arms)


def study_data(record: StudyRecord, held_out: ActivationStore | None = None) -> ReportData:
    """A study's folder as a report's data.

    Args:
        record: the study.
        held_out: the activations it was measured on; None to look them up, or make them again if they are gone.

    Example:
        >>> data = scansion.study_data(record)
    """
    folder = shlex.quote(str(record.folder))
    return ReportData(
        title=": ".join(filter(None, (record.plan.name, record.world))),
        arms=[
            ReportArm(arm.name, arm.info, arm.seed_folders, arm.evaluations(), arm.arm.changes) for arm in record.arms
        ],
        comparison=compare({arm.name: arm.info for arm in record.arms}),
        held_out=held_out or record.held_out(),
        plan=record.plan,
        commands=[
            f"scansion study run plan.yaml --out {folder}",
            f"scansion compare {folder}/run_*",
            f"scansion report {folder}",
        ],
    )


def runs_data(results: Sequence[RunResults], folders: Mapping[str, Path], held_out: ActivationStore) -> ReportData:
    """Trained runs, each by itself, as a report's data.

    Args:
        results: in the order of the table.
        folders: run name -> its folder.
        held_out: the activations they were measured on.

    Raises:
        ConfigError: there is no run.

    Example:
        >>> data = scansion.runs_data(results, folders, held_out)
    """
    if not results:
        raise ConfigError("there is no run to report on")
    arms: list[ReportArm] = []
    for one in results:
        metadata = one.core.sae_metadata
        seed, folder = metadata.seed or 0, folders[one.name]
        settings = {"sae": one.core.sae_config.model_dump(mode="json"), "training": metadata.training}
        info = summarise_seeds({seed: one}, {seed: folder}, {}, [seed], settings)
        arms.append(ReportArm(one.name, info, {seed: folder}, {seed: one}))
    return ReportData(
        title="Runs compared",
        arms=arms,
        comparison=compare({arm.name: arm.info for arm in arms}),
        held_out=held_out,
        plan=None,
        commands=[
            shlex.join(["scansion", "eval", *map(str, folders.values()), "--held-out", str(held_out.folder)])
            + " --report FOLDER"
        ],
    )
