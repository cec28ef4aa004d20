"""Everything in a plan that can be wrong, found in seconds and before anything heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from scansion.activations import TokenExclusion
from scansion.assets import fetch
from scansion.errors import ConfigError, ScansionError
from scansion.evals import evaluations
from scansion.files import require_free_space, require_writable
from scansion.masks import build_mask
from scansion.pipeline.evaluate import check_evaluations, refuse_without_lm
from scansion.pipeline.existing import ExistingSpec
from scansion.pipeline.planted import PlantedSpec
from scansion.pipeline.stores import stores_dir
from scansion.sae import window_of
from scansion.study.failures import read_failure
from scansion.study.plan import StudyPlan
from scansion.study.record import seed_folder, source_at
from scansion.training import TrainingRun, check_folders
from scansion.training.learner import require_memory
from scansion.training.warm_start import check_start


def check_plan(plan: StudyPlan, folders: Mapping[int, Path]) -> None:
    """Raise unless the entries exist, folders are writable, empty or of the same runs, and the settings fit each other.

    The rest is names, shapes, text, data sets, and the disk that SAEs and their checkpoints take; what the activations
    take is known once the text is tokenised.

    Bundled assets that the plan names and the cache lacks are fetched.

    Raises:
        ScansionError: the first thing that does not fit.
    """
    check_entries(plan, folders)
    trials = [(arm, seed) for arm in plan.arms() if arm.run in folders for seed in arm.seeds]
    runs = [TrainingRun(arm.name, seed_folder(folders[arm.run], arm, seed), *arm.at_seed(seed)) for arm, seed in trials]
    check_folders([run for run in runs if read_failure(run.folder) is None])  # what failed is begun again
    if plan.world is not None:
        refuse_without_lm(plan.evaluations, f"the world of {plan.name!r}")
    if plan.store is not None:
        check_evaluations(plan.evaluations, ExistingSpec(plan.store.train, plan.store.held_out).stores.held_out)
    fetch(plan_assets(plan))
    planned = evaluations.build(plan.evaluations).values()
    for evaluation in planned:
        if plan.corpus is not None:
            evaluation.check_plan(plan.corpus)
    if plan.corpus is not None:
        for config in (*(arm.training for arm in plan.arms()), *plan.evaluations.values()):
            if isinstance(config, TokenExclusion):
                config.check_ids(plan.model, plan.revision)
    longest = max(evaluation.tokens_of_own_text for evaluation in planned)
    widths = {source: source.check() for source in dict.fromkeys(source_at(plan, *trial) for trial in trials)}
    for arm in plan.arms():
        if arm.run in folders:
            source = source_at(plan, arm, arm.seeds[0])
            try:
                require_memory(arm.sae, widths[source], source.context_length)
                mask = build_mask(arm.sae.mask, source.context_length, arm.sae.d_sae)
                if longest and mask.gate.forward:  # texts of an evaluation may be longer than the contexts trained on
                    mask.table_rows(torch.tensor([longest - 1]))
                check_start(arm.sae, arm.training, widths[source])
                for evaluation in planned:
                    evaluation.check_sae(arm.sae)
            except ScansionError as error:
                raise ConfigError(f"run {arm.run} ({arm.name}): {error}") from error
            except Exception:  # noqa: S112  a mask of one's own: the trial before training meets it again, and records it
                continue
    for folder in folders.values():
        require_writable(folder)
    planted = sum(source.missing_bytes() for source in widths if isinstance(source, PlantedSpec))
    if planted:
        require_writable(stores_dir())
        require_free_space(stores_dir(), planted, "the synthetic stores")
    missing = sum(
        sae_bytes(2 * window_of(run.sae) * widths[source_at(plan, *trial)] * run.sae.d_sae)
        for trial, run in zip(trials, runs, strict=True)
        if not (run.folder / "sae").exists()
    )
    if missing:
        require_free_space(next(iter(folders.values())), missing, "what is trained")


def plan_assets(plan: StudyPlan) -> list[str]:
    """Names of the bundled assets that the plan reads: model, text, labelled sets. None if it brings its own."""
    labelled = [asset for one in evaluations.build(plan.evaluations).values() for asset in one.assets()]
    first = plan.arms()[0]
    return list(dict.fromkeys([*source_at(plan, first, first.seeds[0]).assets(), *labelled]))


def sae_bytes(n_parameters: int) -> int:
    """Disk of a trained SAE and two checkpoints of its weights with Adam's two moments, in float32."""
    return n_parameters * 4 * (1 + 2 * 3)


def check_entries(plan: StudyPlan, entries: Iterable[int]) -> None:
    """Raise unless the plan has these runs."""
    for index in entries:
        if not 0 <= index < len(plan.runs):
            raise ConfigError(f"the plan {plan.name!r} has no run {index}; it has 0 to {len(plan.runs) - 1}")
