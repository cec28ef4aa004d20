"""Trials: one arm at one seed each. Train and evaluate those of one seed; what fails is recorded, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from scansion.errors import BusyError, ScansionError
from scansion.files import fingerprint
from scansion.pipeline.evaluate import evaluate
from scansion.pipeline.planted import Source
from scansion.pipeline.run_results import RunResults
from scansion.pipeline.stores import Stores
from scansion.progress import say
from scansion.study.failures import read_failure, record_failure
from scansion.study.plan import Arm, StudyPlan
from scansion.training import TrainingRun, train
from scansion.training.loop import STREAM_SETTINGS


@dataclass(frozen=True)
class Trial:
    """One arm at one seed, and where its activations come from.

    Attributes:
        code: fingerprint of the code that the study was started with, for a record of failure.
    """

    arm: Arm
    seed: int
    folder: Path
    source: Source
    code: str

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.arm.name}, seed {self.seed}"

    def training_run(self) -> TrainingRun:
        """What is trained."""
        sae, training = self.arm.at_seed(self.seed)
        return TrainingRun(self.arm.name, self.folder, sae, training)

    def settings(self) -> str:
        """A fingerprint of what is trained and how."""
        return fingerprint(self.training_run().settings())

    def record_failure(self, error: str, cause: Exception | None = None) -> Path:
        """Write why it has no result; return the file."""
        return record_failure(self.folder, error, self.settings(), self.code, cause)

    def failed_before(self) -> bool:
        """Whether it is left out because it failed, which is then said in a line."""
        if (failure := read_failure(self.folder)) is None:
            return False
        say(f"{self.label} failed and is left out ({failure.error}); it is tried again after a change, or with --retry")
        return True


@dataclass(frozen=True)
class TrialGroup:
    """Trials of one seed that are carried out together. Their results do not depend on which are together.

    Attributes:
        deadline: in seconds since 1970; no training begins after it. None: there is none.
    """

    plan: StudyPlan
    trials: Sequence[Trial]
    deadline: float | None

    def carry_out(self, stores: Mapping[Source, Stores]) -> dict[Path, RunResults]:
        """Train and evaluate what is not done yet.

        Args:
            stores: of every source of these trials.

        Returns:
            Folder -> results, of the trials that did not fail.

        Raises:
            BusyError: another process is at work in one of the folders.
        """
        here = [trial for trial in self.trials if not trial.failed_before()]
        if self.deadline is not None and time() > self.deadline:
            for trial in here:
                if not (trial.folder / "evals" / "core.json").exists():
                    trial.record_failure(f"out of time: the plan's {self.plan.max_hours:g} hours were over")
            here = [trial for trial in here if not trial.failed_before()]
        results: dict[Path, RunResults] = {}
        for source, both in stores.items():
            own = [trial for trial in here if trial.source == source]
            _train(own, both)
            results |= _evaluate([trial for trial in own if not read_failure(trial.folder)], self.plan, source, both)
        return results


def deadline_of(plan: StudyPlan) -> float | None:
    """When a study that starts now has used its ``max_hours``."""
    return None if plan.max_hours is None else time() + 3600 * plan.max_hours


def _train(trials: Sequence[Trial], stores: Stores) -> None:
    by_folder = {trial.folder: trial for trial in trials}
    for group in sharing_a_stream([trial.training_run() for trial in trials]):
        _isolated(
            group,
            lambda runs: train(runs, stores.train),
            lambda run, error, cause: by_folder[run.folder].record_failure(f"training failed: {error}", cause),
        )


def _evaluate(trials: Sequence[Trial], plan: StudyPlan, source: Source, stores: Stores) -> dict[Path, RunResults]:
    found: dict[Path, RunResults] = {}

    def measure(some: Sequence[Trial]) -> None:
        folders = {trial.arm.name: trial.folder for trial in some}
        device = some[0].arm.training.device
        done = evaluate(folders, plan.evaluations, stores.held_out, lambda: source.lm, device)
        found.update(zip(folders.values(), done, strict=True))

    for device in dict.fromkeys(trial.arm.training.device for trial in trials):
        _isolated(
            [trial for trial in trials if trial.arm.training.device == device],
            measure,
            lambda trial, error, cause: trial.record_failure(f"evaluation failed: {error}", cause),
        )
    return found


def _isolated(
    items: Sequence[Any],
    work: Callable[[Sequence[Any]], None],
    failed: Callable[[Any, str, Exception], Path],
) -> None:
    """Do the work on all items together; if that fails, on each alone, so that one cannot take the others with it."""
    try:
        work(items)
    except BusyError:
        raise  # somebody else is at work there: no failure of the run
    except Exception as error:
        if len(items) == 1:
            what = in_a_line(error)
            record = failed(items[0], what, error)
            say(f"{what}; the study goes on without it; the traceback is in {record}")
            return
        say(f"one of {len(items)} failed ({' '.join(str(error).split())}); going on one at a time")
        for item in items:
            _isolated([item], work, failed)


def in_a_line(error: Exception) -> str:
    """The message on one line, after the kind of error unless it is one of ours."""
    what = str(error) if isinstance(error, ScansionError) else f"{type(error).__name__}: {error}"
    return " ".join(what.split())


def sharing_a_stream(runs: list[TrainingRun]) -> list[list[TrainingRun]]:
    """The runs in groups that can be trained in one pass."""
    groups: dict[tuple[object, ...], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run.training, name) for name in STREAM_SETTINGS), []).append(run)
    return list(groups.values())
