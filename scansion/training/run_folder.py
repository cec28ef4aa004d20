"""A training run's folder: its config, its metrics, its checkpoints, and its SAE once it is trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from scansion.errors import DamagedError, TrainingError
from scansion.files import atomic_file, atomic_folder, fingerprint, flatten, remove_leftovers, require_writable
from scansion.locks import only_writer
from scansion.mirroring import CHECKPOINTS, send
from scansion.plugins import plugins_record, say_if_plugins_differ
from scansion.progress import say
from scansion.records import (
    json_line,
    numbered_json_lines,
    read_json,
    read_json_lines,
    read_yaml,
    require_known_format,
    write_json,
    write_yaml,
)
from scansion.sae import WEIGHTS
from scansion.tensor_file import load_tensors, save_tensors

KEEP_CHECKPOINTS = 2
COUNTERS = {"step", "tokens", "tokens_at_last_revival"}
"""What a learner counts."""
_CONFIG = "config.yaml"


class RunFolder:
    """Reads and writes one run's files. A file that is there is complete; write only while holding :meth:`writing`.

    Args:
        path: the folder; :meth:`writing` creates it if it is missing.
        config: the run's settings, as JSON values. A folder with other settings is refused.

    Raises:
        TrainingError: the folder belongs to a run with another config.
        ScansionError: the folder is not writable.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        require_writable(path)
        self.path = path
        self.sae = path / "sae"
        self._checkpoints = path / CHECKPOINTS
        self._metrics = path / "metrics.jsonl"
        self._config = config
        require_same_run(path, config)

    @staticmethod
    def may_record(path: Path, name: str) -> bool:
        """Whether the folder's config holds ``name``, or there is no config yet."""
        file = path / _CONFIG
        return not file.is_file() or name in read_yaml(file)

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """Lock the folder, delete temporary files of an interrupted run, and write the config.

        After an error before the first checkpoint, the config is deleted. At the end, and after each checkpoint, a folder that
        stands for a URL is uploaded.

        Raises:
            BusyError: another process is training there; its temporary files are left alone.
            TrainingError: another run was started there in the meantime.
        """
        with only_writer(self.path, "training"):
            for folder in (self.path, self._checkpoints):
                remove_leftovers(folder)
            require_same_run(self.path, self._config)
            say_if_plugins_differ(self.path)
            if not (self.path / _CONFIG).exists():
                write_yaml(self.path / _CONFIG, self._config | plugins_record())
            try:
                yield
            except Exception:
                # Nothing to resume: the folder must take the corrected settings.
                if not self.checkpoints() and not self.finished:
                    (self.path / _CONFIG).unlink(missing_ok=True)
                raise
            send(self.path)

    @property
    def finished(self) -> bool:
        """Whether the trained SAE is there, with its config and its weights."""
        return (self.sae / "cfg.json").exists() and (self.sae / WEIGHTS).exists()

    def checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self._checkpoints.glob("step-*"), reverse=True)

    @staticmethod
    def forget_checkpoints(path: Path) -> None:
        """Delete the checkpoints of the run in a folder, and its config if nothing was trained, so that it starts again."""
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
        if not (path / "sae").exists():
            (path / _CONFIG).unlink(missing_ok=True)
        send(path, [CHECKPOINTS])

    def save_checkpoint(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Save a learner's state atomically and delete all but the newest checkpoints."""
        with self.new_checkpoint(counters["step"]) as temporary:
            self.write_state(temporary, counters, save_tensors(temporary / "state.safetensors", tensors))

    @contextmanager
    def new_checkpoint(self, step: int) -> Generator[Path, None, None]:
        """Yield a temporary folder, which becomes the checkpoint of a step; all but the newest are then deleted."""
        with atomic_folder(self._checkpoints / f"step-{step:09d}") as temporary:
            yield temporary
        old = self.checkpoints()[KEEP_CHECKPOINTS:]
        for each in old:
            shutil.rmtree(each)
        send(self.path, [f"{CHECKPOINTS}/{each.name}" for each in old])

    def write_state(self, folder: Path, counters: dict[str, int], digests: str | dict[str, str]) -> None:
        """Write what a checkpoint's folder says of itself: counters, and the digest of its tensors, or of each rank's file."""
        write_json(folder / "state.json", {**counters, "tensors": digests, "run": fingerprint(self._config)})

    def load_newest_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, int]] | None:
        """The tensors and counters of the newest checkpoint that is whole; None if there is none.

        Those that are damaged are deleted, and each is reported in a line.
        """
        left = self.checkpoints()
        while left:
            path = left.pop(0)
            try:
                return self._load_checkpoint(path)
            except DamagedError as error:
                then = "goes on from the checkpoint before it" if left else "starts again: there is no other checkpoint"
                say(f"{error}; training {then}")
                shutil.rmtree(path)
        return None

    def _load_checkpoint(self, path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
        counters, digest = self.read_state(path)
        if isinstance(digest, dict):
            raise TrainingError(
                f"{path} was written by {len(digest)} ranks: resume the run with torchrun, on any number of ranks "
                f"(--nproc-per-node 1 for one), or delete {self._checkpoints} to start again"
            )
        return load_tensors(path / "state.safetensors", digest), counters

    def read_state(self, path: Path) -> tuple[dict[str, int], str | dict[str, str] | None]:
        """What :meth:`write_state` wrote; the digest is None if an earlier version wrote it.

        Raises:
            DamagedError: it cannot be read, or belongs to another run.
        """
        file = path / "state.json"
        try:
            counters: Any = require_known_format(read_json(file), file)
            digest, run = counters.pop("tensors", None), counters.pop("run", None)  # earlier versions wrote neither
            if run not in (None, fingerprint(self._config)):
                raise DamagedError(f"{path} is a checkpoint of another run")
            if counters.keys() != COUNTERS or path.name != f"step-{counters['step']:09d}":
                raise DamagedError(f"{file} does not say at which step its checkpoint was made")
        except (AttributeError, TypeError, ValueError) as error:
            raise DamagedError(f"{file} does not hold what a checkpoint says") from error
        return counters, digest

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json_line({**line, "run": fingerprint(self._config)[:16]}))
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, after_step: int) -> None:
        """Delete lines later than ``after_step`` and a half-written last line: a resumed run writes them again."""
        if not self._metrics.exists():
            return
        lines = list(numbered_json_lines(self._metrics, lambda error: say(f"{error}; it is left out")))
        kept = [
            text
            for text, line in lines
            if text.endswith("\n") and isinstance(line.get("step"), int) and line["step"] <= after_step
        ]
        with atomic_file(self._metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; empty if it has none.

    Raises:
        DamagedError: a line is damaged or of another run, or the run's settings are.
    """
    file = path / "metrics.jsonl"
    lines = read_json_lines(file)
    if not lines:
        return []
    settings = {name: value for name, value in read_yaml(path / _CONFIG).items() if name != "plugins"}
    run = fingerprint(settings)[:16]
    for number, line in enumerate(lines, 1):
        if line.pop("run", run) != run:  # earlier versions did not write it
            raise DamagedError(f"line {number} of {file} is of another run; delete the line")
    return lines


def require_same_run(path: Path, config: dict[str, Any]) -> None:
    """Raise if the folder holds another run: one of the settings in ``config`` has another value there.

    Raises:
        TrainingError: which settings differ, and how.
    """
    file = path / _CONFIG
    if not file.is_file():
        return
    written = require_known_format(read_yaml(file), file)
    old, new = flatten({name: written.get(name) for name in config}), flatten(config)
    changed = [
        f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise TrainingError(f"{path} holds another run ({'; '.join(changed)}); choose another folder or delete it")
