"""Nothing that is read runs code: no pickles of ours, none of a model's, and no Python from a model's repository."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import scansion
from scansion.errors import ModelError, ScansionError
from scansion.lm import load_language_model

_RUNS_CODE = re.compile(
    r"pickle\.loads?\(|Unpickler|torch\.load\(|joblib\.load|allow_pickle|trust_remote_code\s*=\s*True|yaml\.(?:unsafe_|full_)?load\(|"
    r"(?<![.\w])(?:eval|exec)\(|os\.system|shell\s*=\s*True"
)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_touch, (str(self.file),))


def _touch(path: str) -> None:
    Path(path).touch()


def test_the_library_has_no_call_that_runs_what_it_reads() -> None:
    package = Path(scansion.__file__).parent
    found = {
        match
        for file in sorted(package.rglob("*.py"))
        for line in file.read_text().splitlines()
        if not any(safe in line for safe in ("_StrictLoader)", "weights_only=True", "allow_pickle=False"))
        for match in _RUNS_CODE.findall(line)
    }
    assert found == set()


def test_a_pickle_among_a_models_weights_is_not_executed(lm_folder: Path, tmp_path: Path) -> None:
    model, fired = Path(shutil.copytree(lm_folder, tmp_path / "model")), tmp_path / "fired"
    (model / "model.safetensors").unlink()
    torch.save({"weight": Bomb(fired)}, model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded: Weights only load failed"):
        load_language_model(str(model), device="cpu")
    assert not fired.exists()
    # The test's pickle does what it should.
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert fired.exists()


def test_code_in_a_models_folder_is_not_executed(lm_folder: Path, tmp_path: Path) -> None:
    model, fired = Path(shutil.copytree(lm_folder, tmp_path / "model")), tmp_path / "fired"
    (model / "modeling_own.py").write_text(f"open({str(fired)!r}, 'w').close()\n")
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"},
    }
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScansionError):
        load_language_model(str(model), device="cpu")
    assert not fired.exists()
