"""Carry a synthetic study out: one cell a world and seed, in which all variants are trained in one pass and scored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from pydantic import BaseModel

from scansion.errors import ScansionError
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.evals.recovery import RecoveryResult, evaluate_recovery
from scansion.evals.recovery.recovery import recovery_data
from scansion.files import fingerprint, require_free_space, require_writable
from scansion.pipeline.evaluate import evaluate_missing
from scansion.progress import progress, say
from scansion.sae import load_sae
from scansion.study.execute import sharing_a_stream
from scansion.study.synthetic.plan import SyntheticPlan, WorldPlan
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from scansion.synth.generation import SPLITS
from scansion.synth.store import planted_bytes
from scansion.training import TrainingRun, train


@dataclass(frozen=True)
class CellResult:
    """What one world with one seed has shown: variant name -> its results."""

    world: str
    seed: int
    core: dict[str, CoreResult]
    recovery: dict[str, RecoveryResult]


def execute_synthetic(plan: SyntheticPlan, out: Path, jobs: int) -> list[CellResult]:
    """Run every cell; stores, SAEs and results that are in ``out`` already are not made again.

    Folders are named after what is in them, with a fingerprint of the settings: after a change of the plan only what
    the change touches is computed.

    Args:
        plan: a checked plan.
        out: gets ``stores`` and ``runs``.
        jobs: processes, each with one thread and one cell at a time, and a log in the cell's folder; with 1 everything
            happens in this process, with its own threads and progress bars.

    Raises:
        ScansionError: whatever stops a cell; the finished ones stay.
    """
    require_writable(out)
    cells = [(world, seed) for seed in plan.seeds for world in plan.worlds]
    missing = sum(
        planted_bytes(config, split)
        for config in (plan.world_config(*cell) for cell in cells)
        for split in SPLITS
        if not (_store_folder(out, config) / split).exists()
    )
    require_free_space(out, missing, "the synthetic stores")
    # In this process training shows its own bars, and two at once would overwrite each other.
    with progress("synthetic study", len(cells), "cells") if jobs > 1 else nullcontext(_ignore) as advance:
        results: list[CellResult] = []
        for result in _each(plan, cells, out, jobs):
            results.append(result)
            advance(1)
            say(f"finished {result.world}, seed {result.seed} ({len(results)} of {len(cells)})")
    order = {(world.name, seed): index for index, (world, seed) in enumerate(cells)}
    return sorted(results, key=lambda result: order[result.world, result.seed])


def _ignore(_: float) -> None:
    """Where no bar is shown."""


def _each(plan: SyntheticPlan, cells: list[tuple[WorldPlan, int]], out: Path, jobs: int) -> Iterator[CellResult]:
    if jobs == 1:
        yield from (_run_cell(plan, world, seed, out) for world, seed in cells)
        return
    # Forking a process that holds torch's threads can hang.
    pool = ProcessPoolExecutor(min(jobs, len(cells)), get_context("spawn"), torch.set_num_threads, (1,))
    try:
        for future in as_completed([pool.submit(_run_logged, plan, *cell, out) for cell in cells]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ScansionError("a worker process was killed, perhaps for memory; try again with fewer jobs") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run_logged(plan: SyntheticPlan, world: WorldPlan, seed: int, out: Path) -> CellResult:
    folder = _cell_folder(plan, world, seed, out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stderr(log):
        return _run_cell(plan, world, seed, out)


def _run_cell(plan: SyntheticPlan, world: WorldPlan, seed: int, out: Path) -> CellResult:
    config = plan.world_config(world, seed)
    planted = PlantedDictionary.plant(config)
    store, held_out = (plant_store(planted, split, _store_folder(out, config) / split) for split in SPLITS)
    cell = _cell_folder(plan, world, seed, out)
    runs = [
        TrainingRun(
            variant.name,
            cell / _folder_name(variant.name, sae, training),
            sae,
            training,
        )
        for variant in plan.variants
        for sae, training in [(plan.sae_config(variant, seed), plan.training_config(variant, seed))]
    ]
    for group in sharing_a_stream(runs):
        train(group, store)
    subjects = [LoadedSAE(run.name, *load_sae(run.folder / "sae")) for run in runs]
    folders = [run.folder / "evals" for run in runs]
    core_config = CoreConfig(loss_contexts=0, batch_contexts=128, use_position_0=True, seed=seed)
    core = evaluate_missing(
        "core",
        CoreResult,
        subjects,
        folders,
        {"store": held_out.manifest.key, "config": core_config.model_dump(mode="json")},
        lambda missing: evaluate_core(missing, held_out, None, core_config),
    )
    recovery = evaluate_missing(
        "recovery",
        RecoveryResult,
        subjects,
        folders,
        recovery_data(held_out),
        lambda missing: evaluate_recovery(missing, planted, held_out),
    )
    return CellResult(
        world=world.name,
        seed=seed,
        core={result.sae: result for result in core},
        recovery={result.sae: result for result in recovery},
    )


def _store_folder(out: Path, config: SynthConfig) -> Path:
    return out / "stores" / fingerprint(config.model_dump(mode="json"))[:12]


def _cell_folder(plan: SyntheticPlan, world: WorldPlan, seed: int, out: Path) -> Path:
    return out / "runs" / _folder_name(f"{world.name}-seed-{seed}", plan.world_config(world, seed))


def _folder_name(name: str, *settings: BaseModel) -> str:
    """A readable name that changes with the settings."""
    readable = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return f"{readable}-{fingerprint([part.model_dump(mode='json') for part in settings])[:8]}"
