"""A training run's folder: its config, its metrics, its checkpoints, and its SAE once it is trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from scansion.errors import TrainingError
from scansion.files import (
    atomic_file,
    atomic_folder,
    flatten,
    read_json,
    remove_leftovers,
    require_known_format,
    require_writable,
    write_json,
)
from scansion.locks import only_writer
from scansion.plugins import plugins_record, say_if_plugins_differ
from scansion.sae import WEIGHTS

KEEP_CHECKPOINTS = 2
_CONFIG = "config.yaml"


class RunFolder:
    """Reads and writes one run's files. A file that is there is complete; write only while holding :meth:`writing`.

    Args:
        path: the folder; created if it is missing.
        config: the run's settings, as JSON values. A folder with other settings is refused.

    Raises:
        TrainingError: the folder belongs to a run with another config.
        ScansionError: the folder is not writable.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        require_writable(path)
        self.path = path
        self.sae = path / "sae"
        self._checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._config = config
        require_same_run(path, config)

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """Lock the folder, delete temporary files of an interrupted run, and write the config.

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
                with atomic_file(self.path / _CONFIG) as temporary:
                    temporary.write_text(
                        yaml.safe_dump(self._config | plugins_record(), sort_keys=False), encoding="utf-8"
                    )
            yield

    @property
    def finished(self) -> bool:
        """Whether the trained SAE is there, with its config and its weights."""
        return (self.sae / "cfg.json").exists() and (self.sae / WEIGHTS).exists()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint, or None."""
        return max(self._checkpoints.glob("step-*"), default=None)

    def save_checkpoint(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> Path:
        """Save a learner's state atomically and delete all but the newest checkpoints."""
        path = self._checkpoints / f"step-{counters['step']:09d}"
        with atomic_folder(path) as temporary:
            save_file(tensors, temporary / "state.safetensors")
            write_json(temporary / "state.json", counters)
        for old in sorted(self._checkpoints.glob("step-*"))[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)
        return path

    @staticmethod
    def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The tensors and counters that :meth:`save_checkpoint` saved."""
        counters = require_known_format(read_json(path / "state.json"), path / "state.json")
        return load_file(path / "state.safetensors"), counters

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, after_step: int) -> None:
        """Delete lines later than ``after_step`` and a half-written last line: a resumed run writes them again."""
        if not self._metrics.exists():
            return
        kept: list[str] = []
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= after_step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        with atomic_file(self._metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def require_same_run(path: Path, config: dict[str, Any]) -> None:
    """Raise if the folder holds another run: one of the settings in ``config`` has another value there.

    Raises:
        TrainingError: which settings differ, and how.
    """
    file = path / _CONFIG
    if not file.is_file():
        return
    written: Any = require_known_format(yaml.safe_load(file.read_text(encoding="utf-8")), file)
    written = cast(dict[str, Any], written) if isinstance(written, dict) else {}
    old, new = flatten({name: written.get(name) for name in config}), flatten(config)
    changed = [
        f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise TrainingError(f"{path} holds another run ({'; '.join(changed)}); choose another folder or delete it")
