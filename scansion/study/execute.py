"""Carry a plan out: make the activations once, train what shares a stream together, evaluate, and write every run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from scansion.distributed.cluster import Cluster
from scansion.errors import ScansionError, TrainingError
from scansion.files import expanded, fingerprint, one_line_io_errors
from scansion.locks import only_writer
from scansion.mirroring import send
from scansion.pipeline.evaluate import check_evaluations
from scansion.pipeline.planted import Source
from scansion.pipeline.run_results import RunResults
from scansion.pipeline.stores import Stores
from scansion.progress import say
from scansion.study.checks import check_plan
from scansion.study.failures import clear_failure, code_fingerprint, read_failure
from scansion.study.final_info import ArmInfo, read_final_info, summarise_seeds, write_final_info
from scansion.study.notes import append_notes
from scansion.study.on_cluster import build_on, carry_out_on, require_fit_for_cluster
from scansion.study.plan import StudyPlan
from scansion.study.record import (
    ArmRecord,
    open_runs,
    read_own_final_info,
    read_registration,
    register,
    seed_folder,
    source_at,
)
from scansion.study.trials import Trial, TrialGroup, deadline_of, in_a_line
from scansion.training import check_folders, check_runs
from scansion.training.run_folder import RunFolder
from scansion.training.trial import require_trainable


@one_line_io_errors("the study")
def execute(
    plan: StudyPlan, folders: Mapping[int, Path | str], *, retry: bool = False, cluster: Cluster | None = None
) -> list[ArmRecord]:
    """Run some entries of a plan, each in its own folder, at all its seeds; what is there already is not done again.

    All arms of one seed are trained and measured together before the next seed begins. An arm that fails is recorded and
    the others go on. After each seed every ``final_info.json`` is up to date; when the last seed of a run has ended, an
    entry is added to ``notes.txt`` beside its folder.

    Args:
        plan: the study.
        folders: entry number (from 0) -> the run's folder.
        retry: whether to try again what failed before; it goes on from its last checkpoint.
        cluster: where to harvest, train and evaluate, see :func:`scansion.distributed.cluster.connect`; default this process.

    Returns:
        Every arm of these runs, in the plan's order.

    Raises:
        ConfigError: the plan has no such entry.
        BusyError: another process is writing in one of the folders.
        ScansionError: whatever would stop the whole study, as far as possible before any heavy work.

    Example:
        >>> records = scansion.execute(plan, {0: "runs/mine/run_0"})
    """
    if cluster is not None:
        require_fit_for_cluster(plan)
    runs = {entry: expanded(folder) for entry, folder in folders.items()}
    check_plan(plan, runs)
    with ExitStack() as held:
        for folder in runs.values():
            held.enter_context(only_writer(folder, f"carrying out the study {plan.name}"))
        return _carry_out(plan, runs, retry, cluster)


def _carry_out(plan: StudyPlan, folders: Mapping[int, Path], retry: bool, cluster: Cluster | None) -> list[ArmRecord]:
    deadline, code = deadline_of(plan), code_fingerprint()
    trials = [
        Trial(arm, seed, seed_folder(folders[arm.run], arm, seed), source_at(plan, arm, seed), code)
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
            trial.failed_before()
        for index, folder in folders.items():
            _write_run(plan, folder, [trial for trial in trials if trial.arm.run == index], {})
            append_notes(folder)
        return open_runs(list(folders.values()))
    sources = list(dict.fromkeys(trial.source for trial in trials))  # for synthetic worlds one per world and seed
    stores = {source: source.build() for source in sources} if cluster is None else build_on(cluster, sources)
    for source, both in stores.items():
        check_evaluations(plan.evaluations, both.held_out)
        own = [trial for trial in trials if trial.source == source and not read_failure(trial.folder)]
        check_runs([trial.training_run() for trial in own], both.train)
    seeds = dict.fromkeys(trial.seed for trial in trials)
    groups = [TrialGroup(plan, [trial for trial in trials if trial.seed == seed], deadline) for seed in seeds]
    results: dict[Path, RunResults] = {}
    left = {trial.folder for trial in trials}
    for ended, found in _in_turn(groups, stores) if cluster is None else carry_out_on(cluster, groups, stores):
        results |= found
        left -= {trial.folder for trial in ended}
        for index in {trial.arm.run for trial in ended}:
            own = [trial for trial in trials if trial.arm.run == index]
            only_more = any(trial.folder in left for trial in own)
            _write_run(plan, folders[index], own, results, only_more=only_more)
            send(folders[index])
    for folder in folders.values():
        append_notes(folder)
    return open_runs(list(folders.values()))


def _in_turn(
    groups: Sequence[TrialGroup], stores: Mapping[Source, Stores]
) -> Iterator[tuple[Sequence[Trial], dict[Path, RunResults]]]:
    """Carry the groups out in this process; yield the trials of each, and their results, when it has ended."""
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            say(f"seed {group.trials[0].seed} ({number} of {len(groups)})")
        yield group.trials, group.carry_out(stores)


def _give_another_chance(trial: Trial, retry: bool) -> None:
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
    elif failure.code != trial.code:
        say(f"{trial.label} failed before ({failure.error}); the code has changed since, so it is tried again")
        RunFolder.forget_checkpoints(trial.folder)
        clear_failure(trial.folder)


def _holds_other_settings(trial: Trial) -> bool:
    try:
        check_folders([trial.training_run()])
    except TrainingError:
        return True
    return False


def _try_out(trials: Sequence[Trial]) -> None:
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
            trial.record_failure(f"a trial of a few steps failed: {in_a_line(error)}", error)


def _write_run(
    plan: StudyPlan,
    folder: Path,
    trials: Sequence[Trial],
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
