"""A research loop on a tiny model: a program edits files, starts ``python experiment.py --out_dir=run_i``, reads the result.

Its own mask, architecture and evaluation each have the wrong shape at first. It ends with ten runs compared, and has deleted
nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.conftest import settings_of

ROOT = Path(__file__).parents[2]
TOPK = {"architecture": "topk", "d_sae": 32, "k": 4}


class Loop:
    """What such a program does: it writes files, starts a command, and reads files. It imports nothing of Scansion."""

    def __init__(self, home: Path, plan: dict[str, Any]) -> None:
        self.home = home
        self.plan = plan
        self.ideas: list[dict[str, Any]] = []
        self.environment = {**os.environ, "SCANSION_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}

    def start(self, number: int) -> tuple[int, dict[str, Any]]:
        """The exit status of a run, and what ``final_info.json`` says of its one arm."""
        code = (ROOT / "experiment.py").read_text()
        for old, new in (
            ('PLAN: Path | str = "positional_masking"', 'PLAN: Path | str = Path(__file__).with_name("plan.yaml")'),
            ("NEW_RUNS: list[dict[str, Any]] = []", f"NEW_RUNS: list[dict[str, Any]] = {self.ideas!r}"),
        ):
            assert old in code
            code = code.replace(old, new)
        (self.home / "experiment.py").write_text(code)
        (self.home / "plan.yaml").write_text(yaml.safe_dump(self.plan))
        status = self._run("experiment.py", f"--out_dir=run_{number}").returncode
        [info] = json.loads((self.home / f"run_{number}/final_info.json").read_text()).values()
        return status, info

    def compare(self, *plugins: str) -> str:
        """What ``scansion compare`` prints of all runs."""
        done = self._run("-m", "scansion", *plugins, "compare", *(f"run_{i}" for i in range(10)), "--out", "compared")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_idea(self, idea: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.ideas.append(idea)
        return self.start(len(self.ideas))

    def plug_in(self, name: str, right: str = "", wrong: str = "") -> None:
        """Write a plugin, made from an example, with one mistake, and name it in the plan."""
        text = (ROOT / "examples" / name).read_text()
        assert right in text
        (self.home / name).write_text(text.replace(right, wrong, 1))
        self.plan["plugins"] = [*dict.fromkeys([*self.plan.get("plugins", []), name])]

    def notes(self) -> list[tuple[str, str]]:
        """(run, text) of each entry of ``notes.txt``."""
        parts = re.split(r"^(run_\d+) \[\w+\]$", (self.home / "notes.txt").read_text(), flags=re.MULTILINE)[1:]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_loop_that_makes_mistakes_ends_with_ten_runs_compared(
    lm_folder: Path, documents: Path, tmp_path: Path
) -> None:
    settings = {**settings_of(lm_folder, documents), "evaluations": {"core": {"loss_contexts": 4}}, "seeds": [0, 1, 2]}
    loop = Loop(tmp_path, {**settings, "runs": [{"name": "baseline", "sae": TOPK}]})
    status, info = loop.start(0)
    assert status == 0 and info["status"] == "ok" and info["seeds"] == [0, 1, 2]

    # A mask of its own, whose table has a feature too many.
    turns = {
        "name": "turns",
        "changes": "features take turns",
        "sae": {**TOPK, "mask": {"family": "periodic", "period": 2}},
    }
    loop.plug_in("periodic_mask.py", "torch.arange(d_bound)", "torch.arange(d_bound + 1)")
    status, info = loop.try_idea(turns)
    assert status == 1 and info["status"] == "failed" and "32" in info["reasons"][0] and "33" in info["reasons"][0]
    assert "no conclusion: failed" in loop.notes()[-1][1]
    loop.plug_in("periodic_mask.py")
    status, info = loop.start(1)
    assert status == 0 and info["status"] == "ok" and info["reasons"] == []

    # An architecture of its own, whose penalty is a number per token.
    loop.plug_in("architecture.py", ".tanh()).sum() for", ".tanh()).sum(dim=-1) for")
    status, info = loop.try_idea({"name": "tanh", "sae": {"architecture": "tanh", "d_sae": 32}})
    assert status == 1 and info["status"] == "failed" and "scalar" in info["reasons"][0]
    loop.plug_in("architecture.py")
    status, info = loop.start(2)
    assert status == 0 and info["status"] == "ok"

    # An evaluation of its own, which lacks an axis. The SAE is trained by then, and is not trained again.
    loop.plan["evaluations"]["evenness"] = {"n_contexts": 8}
    loop.plug_in("evaluation.py", "[:, :n, None]", "[:, :n]")
    status, info = loop.try_idea({"name": "wider", "sae": {**TOPK, "d_sae": 48}})
    weights = tmp_path / "run_3/seed_0/sae/sae_weights.safetensors"
    trained = weights.stat().st_mtime_ns
    assert status == 1 and info["status"] == "failed" and "evaluation failed" in info["reasons"][0]
    loop.plug_in("evaluation.py")
    status, info = loop.start(3)
    assert status == 0 and info["means"]["evenness"] > 0 and weights.stat().st_mtime_ns == trained

    for number in range(3):  # the runs from before the evaluation was added
        status, info = loop.start(number)
        assert status == 0 and info["means"]["evenness"] > 0 and len(info["values"]["evenness"]) == 3
    for k in (1, 2, 3, 5, 6, 8):
        status, info = loop.try_idea({"name": f"k = {k}", "sae": {**TOPK, "k": k}})
        assert status == 0 and info["status"] == "ok" and info["means"]["l0"] <= k

    runs = [json.loads((tmp_path / f"run_{i}/final_info.json").read_text()) for i in range(10)]
    assert all(info["status"] == "ok" for run in runs for info in run.values())
    notes = loop.notes()
    assert {run for run, _ in notes} == {f"run_{i}" for i in range(10)}
    last = {run: text for run, text in notes}
    for number, run in enumerate(runs[1:], 1):
        [(name, info)] = run.items()
        text = last[f"run_{number}"]
        assert f"  {name}: ok, 3 seeds (0, 1, 2)" in text and "differs from baseline in: " in text
        assert "the baseline's" in text, "what was found out is said in a sentence"
        assert f"evenness of activity {info['means']['evenness']:.3f} [" in text
    assert "what changes: features take turns" in last["run_1"] and "sae.mask.family: none -> periodic" in last["run_1"]
    assert "evenness: measured by a plugin that is not loaded here" in loop.compare()
    printed = loop.compare("--plugin", "evaluation.py")
    table = json.loads((tmp_path / "compared/comparison.json").read_text())
    assert [arm["name"] for arm in table["arms"]] == [name for run in runs for name in run] and not table["set_apart"]
    assert table["baseline"] == "baseline" and all("evenness" in arm["figures"] for arm in table["arms"])
    assert all(arm["name"] in printed for arm in table["arms"]) and " evenness of " in printed
