"""Carry out a study on a cluster: a task per seed, source and stream trains and evaluates its trials into their folders."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scansion.activations import ActivationStore
from scansion.distributed.cluster import Cluster
from scansion.errors import BusyError, ClusterError, ConfigError, StoreError
from scansion.pipeline.existing import ExistingSpec
from scansion.pipeline.on_cluster import harvesting_on, require_lm_computes_in
from scansion.pipeline.planted import PlantedSpec, Source
from scansion.pipeline.run_results import RunResults
from scansion.pipeline.stores import HarvestSpec, Stores, build_stores
from scansion.progress import say
from scansion.study.failures import read_failure
from scansion.study.plan import StudyPlan
from scansion.study.trials import Trial, TrialGroup, sharing_a_stream

_Folders = tuple[Path, Path]
_LOCK_SECONDS = 300.0
"""How long a task waits for the lock of another that was lost with its machine: NFS releases it after 90 seconds."""


def require_fit_for_cluster(plan: StudyPlan) -> None:
    """Raise :class:`ConfigError` for a plan that only one machine can carry out."""
    if plan.harvest.on_the_fly:
        raise ConfigError("training on the fly is of one machine; set harvest.on_the_fly to false to use a cluster")


def build_on(cluster: Cluster, sources: Sequence[Source]) -> dict[Source, Stores]:
    """The stores of some sources. The shards of text are tasks; so is each synthetic world."""
    stores: dict[Source, Stores] = {}
    for source in sources:
        if isinstance(source, HarvestSpec):
            stores[source] = build_stores(source, compute=harvesting_on(cluster, source))
        elif isinstance(source, ExistingSpec):
            stores[source] = source.build()
    worlds = [source for source in sources if isinstance(source, PlantedSpec)]
    for ended in cluster.run(_plant, [(world,) for world in worlds], ["synthetic world"] * len(worlds)):
        stores[worlds[ended.index]] = _open(ended.require())
    return {source: stores[source] for source in sources}


def _plant(world: PlantedSpec) -> _Folders:
    return _folders(world.build())


def carry_out_on(
    cluster: Cluster, groups: Sequence[TrialGroup], stores: Mapping[Source, Stores]
) -> Iterator[tuple[Sequence[Trial], dict[Path, RunResults]]]:
    """Carry out groups of trials as tasks; yield the trials of each task, and their results, when it has ended.

    If a task is lost too often, its trials are tried one at a time, and one that is lost again is recorded as failed.
    """
    failed = [trial for group in groups for trial in group.trials if trial.failed_before()]
    if failed:
        yield failed, {}
    for trial in (trial for group in groups for trial in group.trials):
        trial.folder.mkdir(parents=True, exist_ok=True)  # a worker that does not see it is not on the same disk
    todo = [replace(group, trials=[trial for trial in group.trials if trial not in failed]) for group in groups]
    tasks = _divided([part for group in todo for part in _of_one_pass(group)], cluster.slots)
    while tasks:
        say(f"{len(tasks)} tasks, {min(cluster.slots, len(tasks))} at once")
        again: list[TrialGroup] = []
        arguments = [(task, {source: _folders(stores[source]) for source in _sources(task)}) for task in tasks]
        left = len(tasks)
        for ended in cluster.run(_carry_out, arguments, [_label(task) for task in tasks]):
            task, left = tasks[ended.index], left - 1
            lost = ended.answer if isinstance(ended.answer, ClusterError) else None
            how = f"took {ended.seconds:.0f} s on {ended.host}" if lost is None else f"lost: {lost}"
            say(f"{_label(task)}: {how}; {left} of {len(tasks)} tasks left")
            if lost is not None and len(task.trials) > 1:
                again += [replace(task, trials=[trial]) for trial in task.trials]
                continue
            if lost is not None:
                task.trials[0].record_failure(str(lost))
            for trial in task.trials:
                if (failure := read_failure(trial.folder)) is not None:
                    say(
                        f"{trial.label}: {failure.error}; the study goes on without it; see failure.json in {trial.folder}"
                    )
            yield task.trials, {} if isinstance(ended.answer, ClusterError) else ended.answer
        tasks = again


def _of_one_pass(group: TrialGroup) -> list[TrialGroup]:
    """In groups that read one stream of one source."""
    by_folder = {trial.folder: trial for trial in group.trials}
    return [
        replace(group, trials=[by_folder[run.folder] for run in runs])
        for source in _sources(group)
        for runs in sharing_a_stream([trial.training_run() for trial in group.trials if trial.source == source])
    ]


def _divided(groups: Sequence[TrialGroup], slots: int) -> list[TrialGroup]:
    """The groups, each in parts of equal size if the cluster would be idle otherwise."""
    parts = math.ceil(slots / max(len(groups), 1))
    sizes = [math.ceil(len(group.trials) / parts) for group in groups]
    return [
        replace(group, trials=group.trials[start : start + size])
        for group, size in zip(groups, sizes, strict=True)
        for start in range(0, len(group.trials), size)
    ]


def _carry_out(group: TrialGroup, folders: Mapping[Source, _Folders]) -> dict[Path, RunResults]:
    """In a worker: train and evaluate a group's trials."""
    stores = {
        source: source.build() if isinstance(source, ExistingSpec) else _open(both) for source, both in folders.items()
    }
    for source, both in stores.items():
        if isinstance(source, HarvestSpec):
            require_lm_computes_in(source, both.train.identity.model_dtype)
    for trial in group.trials:
        if not trial.folder.is_dir():
            raise ClusterError(_not_shared(trial.folder))
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return group.carry_out(stores)
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(2)


def _sources(group: TrialGroup) -> list[Source]:
    return list(dict.fromkeys(trial.source for trial in group.trials))


def _folders(stores: Stores) -> _Folders:
    return stores.train.folder.resolve(), stores.held_out.folder.resolve()


def _open(folders: _Folders) -> Stores:
    try:
        train, held_out = map(ActivationStore, folders)
    except StoreError as error:
        raise ClusterError(f"{error}; {_not_shared(folders[0])}") from error
    return Stores(train, held_out)


def _not_shared(folder: Path) -> str:
    return f"every machine needs {folder}: it must be on a disk that all of them share (SCANSION_CACHE is the cache's folder)"


def _label(group: TrialGroup) -> str:
    return f"seed {group.trials[0].seed}: {', '.join(trial.arm.name for trial in group.trials)}"
