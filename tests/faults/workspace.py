"""A small workspace with every kind of file that Scansion writes, and the use of it that must notice damage."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from scansion.activations import ActivationStore
from scansion.errors import ScansionError
from scansion.evals.position.profiles import PROFILES, load_profiles
from scansion.files import fingerprint
from scansion.masks import BandMaskConfig
from scansion.sae import TopKConfig, load_sae
from scansion.study import StudyPlan, StudyRecord, execute
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.learner import Learner
from scansion.training.run_folder import read_metrics

WORLD: dict[str, Any] = {
    "d_in": 16, "n_features": 24, "context_length": 8, "n_contexts": 1600, "n_held_out_contexts": 96, "mean_l0": 1.5,
    "band_width": [2, 8], "max_probability": 1.0, "mix": {"band": 1, "single": 0, "periodic": 0},
}  # fmt: skip
PLAN: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0],
    "world": WORLD,
    "training": {"tokens": 1500, "batch_tokens": 64, "lr": 0.003, "device": "cpu"},
    "evaluations": {"core": {"loss_contexts": 0}, "position": {"null_draws": 20, "max_null_draws": 40, "mask_draws": 1}},
    "runs": [
        {"name": "plain", "sae": {"architecture": "topk", "d_sae": 24, "k": 2}},
        {"name": "hard", "sae": {"architecture": "topk", "d_sae": 24, "k": 2, "mask": {"family": "random_hard"}}},
    ],
}  # fmt: skip
TOKENS, BATCH = 2_000, 64


@dataclass(frozen=True)
class Workspace:
    """A study on a synthetic world, and a run of its own that was stopped with two checkpoints."""

    home: Path

    @property
    def store(self) -> Path:
        """Training activations, in several shards."""
        return self.home / "store"

    @property
    def killed(self) -> Path:
        """The run that was stopped."""
        return self.home / "killed"

    @property
    def study(self) -> Path:
        """The study's folder."""
        return self.home / "study"

    def copy(self, home: Path) -> Workspace:
        """The same files elsewhere."""
        shutil.copytree(self.home, home)
        return Workspace(home)

    def files(self) -> list[Path]:
        """Everything that is read again later; locks and outputs for people are not."""
        return [
            file
            for file in sorted(self.home.rglob("*"))
            if file.is_file()
            and not file.name.startswith(".")
            and file.suffix in (".json", ".jsonl", ".yaml", ".safetensors")
        ]


class _Stop(Exception):
    pass


def make_workspace(home: Path, stop: bool = True) -> Workspace:
    """Write every kind of file; what is there already is reused or resumed.

    Args:
        home: the folder.
        stop: stop the run on its own at step 24 of 32, with its checkpoints; else train it to its end.
    """
    made = Workspace(home)
    with cache_in(home):
        _plant(made)
        _carry_out(made)
        if stop:
            _stopped_after(_resume, made, 24)
        else:
            _resume(made)
    return made


def _plant(made: Workspace) -> ActivationStore:
    return plant_store(PlantedDictionary.plant(SynthConfig.model_validate(WORLD)), "train", made.store)


def _carry_out(made: Workspace) -> Any:
    plan = StudyPlan.model_validate(PLAN)
    return execute(plan, {run: made.study / f"run_{run}" for run in range(2)})


def _resume(made: Workspace) -> None:
    sae = TopKConfig(d_sae=32, k=4, mask=BandMaskConfig(count=4))
    training = TrainingConfig(
        tokens=TOKENS,
        batch_tokens=BATCH,
        lr=1e-3,
        log_every=5,
        checkpoint_seconds=0.0,
        device="cpu",
        use_position_0=True,
    )
    train([TrainingRun("killed", made.killed, sae, training)], ActivationStore(made.store))


def _stopped_after(work: Callable[[Workspace], None], made: Workspace, steps: int) -> None:
    """Run ``work`` until a learner is about to take step ``steps``."""
    advance = Learner.advance

    def stop(learner: Learner, batch: Any) -> torch.Tensor:
        if learner.step == steps:
            raise _Stop
        return advance(learner, batch)

    Learner.advance = stop  # type: ignore[method-assign]
    try:
        work(made)
    except _Stop:
        return
    finally:
        Learner.advance = advance  # type: ignore[method-assign]
    raise AssertionError("it was not stopped")


@contextmanager
def cache_in(home: Path) -> Iterator[None]:
    before = os.environ.get("SCANSION_CACHE")
    os.environ["SCANSION_CACHE"] = str(home / "cache")
    try:
        yield
    finally:
        del os.environ["SCANSION_CACHE"]
        if before is not None:
            os.environ["SCANSION_CACHE"] = before


def use(workspace: Workspace, timed: bool = True) -> dict[str, str]:
    """What comes of using a workspace in each way: a hash of the result, or ``error: ...`` if a user's error was raised.

    The workspace is changed. Any other exception is a bug and goes on.

    Args:
        workspace: as :func:`make_workspace` makes it.
        timed: times in metrics are part of the result; they differ between workspaces made separately.
    """
    ways: dict[str, Callable[[Workspace], object]] = {
        "read study": _read_study,
        "read metrics": lambda made: _read_metrics(made, () if timed else ("seconds", "step_ms")),
        "go on training": _go_on,
        "run study again": _run_again,
    }
    found: dict[str, str] = {}
    with cache_in(workspace.home):
        for name, way in ways.items():
            try:
                found[name] = fingerprint(way(workspace))
            except ScansionError as error:
                found[name] = f"error: {error}"
    return found


def _run_again(made: Workspace) -> object:
    records = _carry_out(made)
    if failed := [reason for one in records if one.info.status == "failed" for reason in one.info.reasons]:
        raise ScansionError("; ".join(failed))
    return {one.name: one.info.values for one in records}


def _read_study(made: Workspace) -> object:
    record = StudyRecord.open(made.study)
    values = {arm.name: [arm.info.values, arm.info.status] for arm in record.arms}
    for arm in record.arms:
        for seed, folder in arm.seed_folders.items():
            load_sae(folder / "sae")
            values[f"{arm.name} {seed}"] = [arm.evaluations()[seed].means()]
            profiles = load_profiles(folder / "evals") if (folder / "evals" / PROFILES).exists() else {}
            values[f"{arm.name} {seed} profiles"] = [{name: array.tobytes().hex() for name, array in profiles.items()}]
    return values


def _read_metrics(made: Workspace, without: Collection[str]) -> object:
    return [
        {name: value for name, value in line.items() if name not in without}
        for file in sorted(made.home.rglob("metrics.jsonl"))
        for line in read_metrics(file.parent)
    ]


def _go_on(made: Workspace) -> object:
    _resume(made)
    return {
        name: tensor.numpy().tobytes().hex()
        for name, tensor in load_file(made.killed / "sae" / "sae_weights.safetensors").items()
    }


Damage = Callable[[Path, random.Random, list[Path]], str]


def flip_bit(file: Path, draw: random.Random, _others: list[Path]) -> str:
    """One bit is wrong."""
    data = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place}"


def cut_short(file: Path, draw: random.Random, _others: list[Path]) -> str:
    """The end is missing."""
    data = file.read_bytes()
    kept = draw.randrange(len(data))
    file.write_bytes(data[:kept])
    return f"cut to {kept} bytes"


def zero_page(file: Path, draw: random.Random, _others: list[Path]) -> str:
    """Four kilobytes are zero."""
    data = bytearray(file.read_bytes())
    start = draw.randrange(0, len(data), 4096)
    stop = min(start + 4096, len(data))
    data[start:stop] = bytes(stop - start)
    file.write_bytes(data)
    return f"zeros from {start} to {stop}"


def swap(file: Path, draw: random.Random, others: list[Path]) -> str:
    """It and another file of its kind are in each other's place."""
    alike = [other for other in others if other.suffix == file.suffix and other != file] or [file]
    other = draw.choice(alike)
    here, there = file.read_bytes(), other.read_bytes()
    file.write_bytes(there)
    other.write_bytes(here)
    return f"swapped with {other.name}"


def foreign(file: Path, draw: random.Random, others: list[Path]) -> str:
    """Another file of its kind lies there too."""
    alike = [other for other in others if other.suffix == file.suffix and other != file] or [file]
    other = draw.choice(alike)
    file.write_bytes(other.read_bytes())
    return f"replaced by {other.name}"


DAMAGES: dict[str, Damage] = {
    "bit flip": flip_bit,
    "truncation": cut_short,
    "zeroed page": zero_page,
    "swap": swap,
    "foreign file": foreign,
}


def outcome(found: dict[str, str], right: dict[str, str]) -> str:
    """``identical``, ``clear error`` or ``silent``, the worst of all ways of use."""
    wrong = [name for name in right if found[name] != right[name]]
    if any(not found[name].startswith("error: ") for name in wrong):
        return "silent"
    return "clear error" if wrong else "identical"
