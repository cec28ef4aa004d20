"""Carry a plan out: harvest once, train what shares a stream together, evaluate, and write every run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scansion.errors import ConfigError
from scansion.evals.bundle import Evaluations
from scansion.evals.position import check_position
from scansion.evals.probing_sets import check_probing_sets
from scansion.files import one_line_io_errors, require_writable
from scansion.study.evaluate import evaluate_runs
from scansion.study.final_info import write_final_info
from scansion.study.plan import RunPlan, StudyPlan
from scansion.study.sources import Source, Stores, prepare
from scansion.training import TrainingRun, train
from scansion.training.loop import STREAM_SETTINGS


@one_line_io_errors("the study")
def execute(plan: StudyPlan, folders: Mapping[int, Path]) -> tuple[dict[int, Evaluations], Stores]:
    """Run some entries of a plan, each in its own folder; what is there already is not done again.

    Args:
        plan: the study.
        folders: entry number (from 0) -> the run's folder.

    Returns:
        Entry number -> the run's evaluations, also written to its ``evals`` folder and ``final_info.json``; and the
        stores they all share.

    Raises:
        ConfigError: the plan has no such entry.
        ScansionError: whatever stops the study, as far as possible before any heavy work.
    """
    for index in folders:
        if not 0 <= index < len(plan.runs):
            raise ConfigError(f"the plan {plan.name!r} has no run {index}; it has 0 to {len(plan.runs) - 1}")
    for folder in folders.values():
        require_writable(folder)
    if plan.sparse_probing:
        check_probing_sets(plan.sparse_probing.datasets, plan.sparse_probing.order_corpus, plan.sparse_probing.hub)
    source = Source(
        model=plan.model,
        hook_point=plan.hook_point,
        corpus=plan.corpus,
        harvest=plan.harvest,
        revision=plan.revision,
        lm_dtype=plan.lm_dtype,
        device=plan.device,
    )
    stores = prepare(source)
    if plan.position:
        check_position(stores.held_out, plan.position)
    runs = {index: _training_run(plan, plan.runs[index], folder) for index, folder in folders.items()}
    for group in sharing_a_stream(list(runs.values())):
        train(group, stores.train)
    names = {run.name: run.folder for run in runs.values()}
    results = evaluate_runs(names, stores.held_out, lambda: source.lm, plan.core, plan.sparse_probing, plan.position)
    for (index, run), evaluations in zip(runs.items(), results, strict=True):
        write_final_info(run.folder, f"{plan.name}/{index}", evaluations)
    return dict(zip(runs, results, strict=True)), stores


def _training_run(plan: StudyPlan, run: RunPlan, folder: Path) -> TrainingRun:
    return TrainingRun(run.name, folder, run.sae, plan.training_of(run))


def sharing_a_stream(runs: list[TrainingRun]) -> list[list[TrainingRun]]:
    """The runs in groups that can be trained in one pass."""
    groups: dict[tuple[object, ...], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run.training, name) for name in STREAM_SETTINGS), []).append(run)
    return list(groups.values())
