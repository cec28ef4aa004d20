"""A study's run folders as runs of an experiment tracker. The folders stay the record; what is imported can be rebuilt."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

from scansion.errors import ConfigError
from scansion.progress import progress
from scansion.study.record import ArmRecord, StudyRecord
from scansion.training import TrainingRun
from scansion.training.loop import OnMetrics
from scansion.training.run_folder import read_metrics

Tracker = Literal["trackio", "wandb"]


def import_study(record: StudyRecord, tracker: Tracker) -> int:
    """Give every finished seed of a study to a tracker, on this machine only; what was imported before is replaced.

    Both trackers are called alike: ``init``, a ``log`` for each line of metrics.jsonl and one for the figures of
    final_info.json, ``finish``.

    Args:
        record: the study.
        tracker: ``trackio`` keeps its runs in its own folder; ``wandb`` in offline mode, in the study's.

    Returns:
        Number of runs.

    Raises:
        ConfigError: the tracker is not installed.
    """
    module = _module(tracker)
    project = f"scansion-{record.plan.name}"
    extra: dict[str, Any] = {}
    if tracker == "trackio":
        module.delete_project(project, force=True)
    else:
        extra = {"mode": "offline", "dir": str(record.folder)}
    trials = [(arm, seed, folder) for arm in record.arms for seed, folder in arm.seed_folders.items()]
    with progress(f"into {tracker}", len(trials), "runs") as advance:
        for arm, seed, folder in trials:
            config = {**arm.arm.settings(), "seed": seed, "plan": record.plan.digest}
            module.init(project=project, name=f"{arm.name}, seed {seed}", group=arm.name, config=config, **extra)
            last = 0
            for line in read_metrics(folder):
                last = line["step"]
                module.log(_shown(line), step=last)
            module.log(_figures(arm, seed), step=last)
            module.finish()
            advance(1)
    return len(trials)


@contextmanager
def live(run: TrainingRun, tracker: Tracker) -> Generator[OnMetrics, None, None]:
    """Show one training run in a tracker while it goes on: pass what is yielded to :func:`scansion.train`.

    The run's own folder stays the record. ``wandb`` is used as it is set up on this machine; ``WANDB_MODE=offline`` keeps
    it here.

    Raises:
        ConfigError: the tracker is not installed.
    """
    module = _module(tracker)
    module.init(project="scansion", name=run.name, config=run.settings())
    try:
        yield lambda _run, line: module.log(_shown(line), step=line["step"])
    finally:
        module.finish()


def require_tracker(tracker: Tracker) -> None:
    """Raise :class:`ConfigError` unless the tracker is installed."""
    _module(tracker)


def open_tracker(record: StudyRecord) -> None:
    """Serve trackio's dashboard of the study on this machine until interrupted."""
    _module("trackio").show(project=f"scansion-{record.plan.name}", host="127.0.0.1", share=False)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    return {f"train/{name}": value for name, value in line.items() if value is not None and name != "step"}


def _figures(arm: ArmRecord, seed: int) -> dict[str, float]:
    index = arm.info.seeds.index(seed)
    return {f"final/{name}": v for name, values in arm.info.values.items() if (v := values[index]) is not None}


def _module(tracker: Tracker) -> Any:
    try:
        return importlib.import_module(tracker)
    except ImportError as error:
        raise ConfigError(f"{tracker} is not installed; pip install {tracker}") from error
