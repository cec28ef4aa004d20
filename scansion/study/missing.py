"""Which files of runs are missing, by what the other files in their folders say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scansion.errors import ScansionError
from scansion.evals import evaluations
from scansion.evals.position.profiles import PROFILES
from scansion.records import read_object, read_yaml
from scansion.sae import WEIGHTS
from scansion.study.final_info import FINAL_INFO
from scansion.study.record import open_run, read_registration
from scansion.training.run_folder import read_metrics


def missing_under(folder: Path) -> list[str]:
    """What the runs under ``folder`` lack, one line per file. A run that was stopped lacks nothing: it can be resumed.

    Args:
        folder: a run, a study, or a folder of several.
    """
    studied = sorted(
        {file.parent for file in folder.rglob("plan.json") if not (file.parent / "manifest.json").exists()}
    )
    trained = {file.parent for name in ("config.yaml", "metrics.jsonl") for file in folder.rglob(name)}
    trained |= {file.parent.parent for name in ("cfg.json", WEIGHTS) for file in folder.rglob(f"sae/{name}")}
    trained |= {file.parent.parent for file in folder.rglob("evals/*.json")}
    needed = [pair for run in studied for pair in _needed_by_study(run)]
    needed += [pair for run in sorted(trained) for pair in _needed_by_training(run)]
    reasons: dict[Path, str] = {}
    for file, why in needed:
        if not file.exists():
            reasons.setdefault(file, why)
    return [f"{file} is missing: {why}" for file, why in reasons.items()]


def _needed_by_study(run: Path) -> Iterator[tuple[Path, str]]:
    """Each file that a run of a study must have, and why."""
    yield run / FINAL_INFO, "run the study again to write it again"
    with suppress(ScansionError):  # a damaged file is reported by whoever reads it
        registration = read_registration(run)
        files = {name: one.file for name, one in evaluations.build(registration.plan.evaluations).items()}
        for arm in open_run(run):
            for seed, folder in arm.seed_folders.items():
                why = f"{FINAL_INFO} has figures of {arm.name}, seed {seed}; run the study again"
                yield from ((folder / name, why) for name in ("config.yaml", f"sae/{WEIGHTS}"))
                measured = files.keys() & arm.info.provenance.get("evaluated_on", {}).keys()
                yield from ((folder / "evals" / f"{files[name]}.json", why) for name in sorted(measured))


def _needed_by_training(run: Path) -> Iterator[tuple[Path, str]]:
    """Each file that a training run must have, and why."""
    again = "run the same command again to write it again"
    for checkpoint in (run / "checkpoints").glob("step-*"):
        for name in ("state.json", "state.safetensors"):
            yield checkpoint / name, f"delete {checkpoint}; training goes on from the one before it"
    if any((run / "evals").glob("*.json")) or (run / "sae").is_dir():
        yield run / "sae" / "cfg.json", f"the SAE of this run was saved; {again}"
        yield run / "sae" / WEIGHTS, f"the SAE of this run was saved; {again}"
    if (run / "evals" / "position.json").exists():
        yield run / "evals" / PROFILES, "delete position.json beside it and evaluate again"
    if (run / "metrics.jsonl").exists() or (run / "checkpoints").is_dir():
        yield run / "config.yaml", "without it the run cannot be resumed; train again in another folder"
    with suppress(ScansionError, KeyError, TypeError, AttributeError):  # of another version, or damaged
        settings = read_yaml(run / "config.yaml")
        if "training" not in settings:  # imported from another library
            return
        if (run / "sae" / "cfg.json").exists() and read_object(run / "sae" / "cfg.json")["metadata"]["steps"]:
            yield run / "metrics.jsonl", f"the SAE of this run was trained; delete its sae/ and {again}"
        lines = read_metrics(run)
        if lines and lines[-1]["tokens"] >= settings["training"]["tokens"]:
            yield run / "sae" / "cfg.json", f"training had ended; {again}"
