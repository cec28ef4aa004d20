"""Carry a plan out: make the activations once, train what shares a stream together, evaluate, and write every run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from scansion.errors import BusyError, ScansionError, TrainingError
from scansion.files import expanded, fingerprint, one_line_io_errors
from scansion.locks import only_writer
from scansion.mirroring import send
from scansion.pipeline.evaluate import check_evaluations, evaluate
from scansion.pipeline.planted import Source
from scansion.pipeline.run_results import RunResults
from scansion.pipeline.stores import Stores
from scansion.progress import say
from scansion.study.checks import check_plan
from scansion.study.failures import clear_failure, code_fingerprint, read_failure, record_failure
from scansion.study.final_info import ArmInfo, read_final_info, summarise_seeds, write_final_info
from scansion.study.notes import append_notes
from scansion.study.plan import Arm, StudyPlan
from scansion.study.record import (
    ArmRecord,
    open_runs,
    read_own_final_info,
    read_registration,
    register,
    seed_folder,
    source_at,
)
from scansion.training import TrainingRun, check_folders, check_runs, train
from scansion.training.loop import STREAM_SETTINGS
from scansion.training.run_folder import RunFolder
from scansion.training.trial import require_trainable


@dataclass(frozen=True)
class _Trial:
    """One arm at one seed, and where its activations come from."""

    arm: Arm
    seed: int
    folder: Path
    source: Source

    @property
    def label(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    def training_run(self) -> TrainingRun:
        sae, training = self.arm.at_seed(self.seed)
        return TrainingRun(self.arm.name, self.folder, sae, training)

    def settings(self) -> str:
        """A fingerprint of what is trained and how."""
        return fingerprint(self.training_run().settings())

    def record_failure(self, error: str, cause: Exception | None = None) -> Path:
        return record_failure(self.folder, error, self.settings(), cause)


@one_line_io_errors("the study")
def execute(plan: StudyPlan, folders: Mapping[int, Path | str], *, retry: bool = False) -> list[ArmRecord]:
    """Run some entries of a plan, each in its own folder, at all its seeds; what is there already is not done again.

    All arms of one seed are trained and measured together before the next seed begins. An arm that fails is recorded and
    the others go on. After each seed every ``final_info.json`` is up to date; when the last seed of a run has ended, an
    entry is added to ``notes.txt`` beside its folder.

    Args:
        plan: the study.
        folders: entry number (from 0) -> the run's folder.
        retry: whether to try again what failed before; it goes on from its last checkpoint.

    Returns:
        Every arm of these runs, in the plan's order.

    Raises:
        ConfigError: the plan has no such entry.
        BusyError: another process is writing in one of the folders.
        ScansionError: whatever would stop the whole study, as far as possible before any heavy work.

    Example:
        >>> records = scansion.execute(plan, {0: "runs/mine/run_0"})
    """
    runs = {entry: expanded(folder) for entry, folder in folders.items()}
    check_plan(plan, runs)
    with ExitStack() as held:
        for folder in runs.values():
            held.enter_context(only_writer(folder, f"carrying out the study {plan.name}"))
        return _carry_out(plan, runs, retry)


def _carry_out(plan: StudyPlan, folders: Mapping[int, Path], retry: bool) -> list[ArmRecord]:
    began = monotonic()
    trials = [
        _Trial(arm, seed, seed_folder(folders[arm.run], arm, seed), source_at(plan, arm, seed))
        for arm in plan.arms()
        if arm.run in folders
        for seed in arm.seeds
    ]
    for index, folder in folders.items():
        register(plan, index, folder)
        try:
            read_own_final_info(folder, read_registration(folder))
        except ScansionError:
            # There is none, or a damaged or foreign one. A run that is killed stays in the tables with this one.
            _write_run(plan, folder, [trial for trial in trials if trial.arm.run == index], {})
    for trial in trials:
        _give_another_chance(trial, retry)
    _try_out([trial for trial in trials if not read_failure(trial.folder)])
    if all(read_failure(trial.folder) for trial in trials):  # harvesting would be in vain
        for trial in trials:
            _failed_before(trial)
        for index, folder in folders.items():
            _write_run(plan, folder, [trial for trial in trials if trial.arm.run == index], {})
            append_notes(folder)
        return open_runs(list(folders.values()))
    # One for text; for synthetic worlds one for each world and seed.
    stores = {source: source.build() for source in dict.fromkeys(trial.source for trial in trials)}
    for source, both in stores.items():
        check_evaluations(plan.evaluations, both.held_out)
        own = [trial for trial in trials if trial.source == source and not read_failure(trial.folder)]
        check_runs([trial.training_run() for trial in own], both.train)
    results: dict[Path, RunResults] = {}
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    for number, seed in enumerate(seeds, 1):
        if len(seeds) > 1:
            say(f"seed {seed} ({number} of {len(seeds)})")
        here = [trial for trial in trials if trial.seed == seed and not _failed_before(trial)]
        if plan.max_hours is not None and monotonic() - began > 3600 * plan.max_hours:
            for trial in here:
                if not (trial.folder / "evals" / "core.json").exists():
                    trial.record_failure(f"out of time: the plan's {plan.max_hours:g} hours were over")
            here = [trial for trial in here if not _failed_before(trial)]
        for source, both in stores.items():
            own = [trial for trial in here if trial.source == source]
            _train(own, both)
            results |= _evaluate([trial for trial in own if not read_failure(trial.folder)], plan, source, both)
        for index, folder in folders.items():
            own = [trial for trial in trials if trial.arm.run == index]
            _write_run(plan, folder, own, results, only_more=any(trial.seed in seeds[number:] for trial in own))
            send(folder)
    for folder in folders.values():
        append_notes(folder)
    return open_runs(list(folders.values()))


def _give_another_chance(trial: _Trial, retry: bool) -> None:
    """Forget a failure if that is asked for, or if the code or the settings are no longer those that failed.

    With ``retry`` alone training goes on from its last checkpoint. New code starts at the first step, unless the SAE is
    trained and only its evaluation failed. New settings start with an empty folder.
    """
    failure = read_failure(trial.folder)
    if failure is None:
        return
    if failure.settings not in (None, trial.settings()) or _holds_other_settings(trial):
        say(f"{trial.label} failed before, with other settings: its folder is emptied, and it starts again")
        for path in trial.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        send(trial.folder, ["."])
    elif retry:
        clear_failure(trial.folder)
    elif failure.code != code_fingerprint():
        say(f"{trial.label} failed before ({failure.error}); the code has changed since, so it is tried again")
        RunFolder.forget_checkpoints(trial.folder)
        clear_failure(trial.folder)


def _holds_other_settings(trial: _Trial) -> bool:
    try:
        check_folders([trial.training_run()])
    except TrainingError:
        return True
    return False


def _try_out(trials: Sequence[_Trial]) -> None:
    """Take a few steps with every SAE that is still to be trained, and record what fails, before anything heavy is done."""
    firsts = {trial.arm.name: trial for trial in reversed(trials) if not (trial.folder / "sae").exists()}
    failed: dict[str, Exception] = {}
    for name, first in firsts.items():
        run = first.training_run()
        try:
            require_trainable(run.sae, run.training, first.source.context_length)
        except Exception as error:  # code of one's own may raise anything
            failed[name] = error
    for trial in trials:
        if (error := failed.get(trial.arm.name)) is not None:
            trial.record_failure(f"a trial of a few steps failed: {_in_a_line(error)}", error)


def _failed_before(trial: _Trial) -> bool:
    if (failure := read_failure(trial.folder)) is None:
        return False
    say(f"{trial.label} failed and is left out ({failure.error}); it is tried again after a change, or with --retry")
    return True


def _train(trials: Sequence[_Trial], stores: Stores) -> None:
    by_folder = {trial.folder: trial for trial in trials}
    for group in sharing_a_stream([trial.training_run() for trial in trials]):
        _isolated(
            group,
            lambda runs: train(runs, stores.train),
            lambda run, error, cause: by_folder[run.folder].record_failure(f"training failed: {error}", cause),
        )


def _evaluate(trials: Sequence[_Trial], plan: StudyPlan, source: Source, stores: Stores) -> dict[Path, RunResults]:
    found: dict[Path, RunResults] = {}

    def measure(some: Sequence[_Trial]) -> None:
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
            what = _in_a_line(error)
            record = failed(items[0], what, error)
            say(f"{what}; the study goes on without it; the traceback is in {record}")
            return
        say(f"one of {len(items)} failed ({' '.join(str(error).split())}); going on one at a time")
        for item in items:
            _isolated([item], work, failed)


def _in_a_line(error: Exception) -> str:
    what = str(error) if isinstance(error, ScansionError) else f"{type(error).__name__}: {error}"
    return " ".join(what.split())


def _write_run(
    plan: StudyPlan,
    folder: Path,
    trials: Sequence[_Trial],
    results: Mapping[Path, RunResults],
    *,
    only_more: bool = False,
) -> None:
    """Write what is known of a run so far; ``only_more``: unless the file there speaks of more seeds, from an earlier time."""
    registration = read_registration(folder)
    arms = {trial.arm.name: trial.arm for trial in trials}
    infos: dict[str, ArmInfo] = {}
    for name, arm in arms.items():
        own = [trial for trial in trials if trial.arm.name == name]
        infos[name] = summarise_seeds(
            {trial.seed: results[trial.folder] for trial in own if trial.folder in results},
            {trial.seed: trial.folder for trial in own},
            {trial.seed: failure.error for trial in own if (failure := read_failure(trial.folder)) is not None},
            arm.seeds,
            {
                "study": plan.name,
                "run": arm.run,
                "plan": registration.digest,
                "plans_before": [one.digest for one in registration.earlier],
                "arm": fingerprint(arm.settings()),
                **arm.settings(),
            },
        )
    if only_more and _n_seeds(read_final_info(folder)) > _n_seeds(infos):
        return
    write_final_info(folder, infos)


def _n_seeds(infos: Mapping[str, ArmInfo]) -> int:
    return sum(len(info.seeds) for info in infos.values())


def sharing_a_stream(runs: list[TrainingRun]) -> list[list[TrainingRun]]:
    """The runs in groups that can be trained in one pass."""
    groups: dict[tuple[object, ...], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run.training, name) for name in STREAM_SETTINGS), []).append(run)
    return list(groups.values())
