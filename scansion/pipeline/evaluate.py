"""Evaluate trained runs together, so that the store and the LM are read once, and keep each result in its run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from scansion.activations import ActivationStore
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.evals.core.saebench import core_json
from scansion.evals.position import PositionConfig, PositionResult, check_position, evaluate_position, save_profiles
from scansion.evals.probing.evaluate import SparseProbingConfig, evaluate_sparse_probing
from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.probing.saebench import sparse_probing_json
from scansion.evals.probing.sets import probing_source
from scansion.files import read_json, write_json
from scansion.lm import HookPoint, LanguageModel
from scansion.pipeline.run_results import RunResults
from scansion.progress import say
from scansion.sae import load_sae

Result = TypeVar("Result", bound=EvalResult)


def evaluate_runs(
    runs: Mapping[str, Path],
    held_out: ActivationStore,
    load_lm: Callable[[], LanguageModel],
    core: CoreConfig,
    sparse_probing: SparseProbingConfig | None,
    position: PositionConfig | None = None,
) -> list[RunResults]:
    """Evaluate each run's SAE, or read the results where the same SAE was evaluated the same way before.

    Args:
        runs: name -> folder of a trained run; results go to its ``evals``.
        held_out: activations of documents no run was trained on.
        load_lm: gives the language model, each time it is needed.
        core, sparse_probing, position: settings; what is None is not evaluated.
    """
    if position is not None:
        check_position(held_out, position)
    subjects = [LoadedSAE(name, *load_sae(folder / "sae")) for name, folder in runs.items()]
    folders = [folder / "evals" for folder in runs.values()]
    core_results = evaluate_missing(
        "core",
        CoreResult,
        subjects,
        folders,
        {"store": held_out.manifest.key, "config": core.model_dump(mode="json")},
        lambda missing: evaluate_core(missing, held_out, load_lm, core),
        core_json,
    )
    probing_results: Sequence[SparseProbingResult | None] = [None] * len(subjects)
    if sparse_probing is not None:
        probing_results = _probe(subjects, folders, held_out, load_lm, sparse_probing)
    position_results: Sequence[PositionResult | None] = [None] * len(subjects)
    if position is not None:
        position_results = _profile(subjects, folders, held_out, load_lm, position)
    return [RunResults(*three) for three in zip(core_results, probing_results, position_results, strict=True)]


def _profile(
    subjects: Sequence[LoadedSAE],
    folders: Sequence[Path],
    held_out: ActivationStore,
    load_lm: Callable[[], LanguageModel],
    config: PositionConfig,
) -> list[PositionResult]:
    folder_of = {subject.name: folder for subject, folder in zip(subjects, folders, strict=True)}

    def profile(missing: list[LoadedSAE]) -> list[PositionResult]:
        found = evaluate_position(missing, held_out, load_lm, config)
        for subject, (_, profiles) in zip(missing, found, strict=True):
            # Before the result itself, whose presence then says that both are there.
            save_profiles(profiles, folder_of[subject.name])
        return [result for result, _ in found]

    return evaluate_missing(
        "position",
        PositionResult,
        subjects,
        folders,
        {"store": held_out.manifest.key, "config": config.model_dump(mode="json")},
        profile,
    )


def _probe(
    subjects: Sequence[LoadedSAE],
    folders: Sequence[Path],
    held_out: ActivationStore,
    load_lm: Callable[[], LanguageModel],
    sparse_probing: SparseProbingConfig,
) -> list[SparseProbingResult]:
    hook_point = HookPoint.parse(held_out.identity.hook_point)
    # So that the same SAEs may be probed with several poolings.
    name = "sparse_probing" if sparse_probing.pooling == "mean" else f"sparse_probing_{sparse_probing.pooling}"
    return evaluate_missing(
        name,
        SparseProbingResult,
        subjects,
        folders,
        {
            "config": sparse_probing.model_dump(mode="json"),
            "source": probing_source(),
            "lm_dtype": held_out.identity.model_dtype,
        },
        lambda missing: evaluate_sparse_probing(missing, load_lm(), hook_point, sparse_probing),
        sparse_probing_json,
    )


def evaluate_missing(
    name: str,
    kind: type[Result],
    subjects: Sequence[LoadedSAE],
    folders: Sequence[Path],
    data: dict[str, object],
    evaluate: Callable[[list[LoadedSAE]], Sequence[Result]],
    saebench: Callable[[Result, LoadedSAE], dict[str, Any]] | None = None,
) -> list[Result]:
    """The subjects' results of one evaluation, computed where ``FOLDER/name.json`` does not hold them yet.

    Args:
        name: the evaluation's name.
        kind: its result.
        subjects, folders: SAEs, and the ``evals`` folder of each.
        data: what a result's ``data`` must say to count as the same evaluation.
        evaluate: called once, with all the subjects that lack a result.
        saebench: a result in SAEBench's layout, for ``FOLDER/name.saebench.json``; None if it has none.
    """
    files = [folder / f"{name}.json" for folder in folders]
    results = [_read(file, kind, subject, data) for file, subject in zip(files, subjects, strict=True)]
    missing = [index for index, result in enumerate(results) if result is None]
    if len(missing) < len(subjects):
        say(f"{name}: {len(subjects) - len(missing)} of {len(subjects)} already evaluated")
    if missing:
        for index, result in zip(missing, evaluate([subjects[i] for i in missing]), strict=True):
            if saebench:
                # Before the result itself, whose presence then says that both are there.
                write_json(folders[index] / f"{name}.saebench.json", saebench(result, subjects[index]))
            write_json(files[index], result.model_dump(mode="json"))
            results[index] = result
    return [result for result in results if result is not None]


def _read(file: Path, kind: type[Result], subject: LoadedSAE, data: dict[str, object]) -> Result | None:
    """A result on disk, if it is of this SAE and these settings."""
    if not file.exists():
        return None
    try:
        result = kind.model_validate(read_json(file))
    except ValidationError:  # written by another version: evaluate again
        return None
    same = result.sae_fingerprint == subject.fingerprint and all(result.data.get(key) == data[key] for key in data)
    return result if same else None
