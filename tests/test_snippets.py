"""Every command and every piece of Python in README and docs: all commands parse, and what a small world has is run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from doctest import DocTestParser
from pathlib import Path
from typing import Any

import pytest

import scansion
from scansion import cli
from scansion.cli.training import offer_all_architectures
from scansion.evals import evaluations
from scansion.masks import MASKS
from scansion.registry import PLUGINS, load_plugin
from scansion.sae import ARCHITECTURES
from tests.study.conftest import settings_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Written by docs/reference.py from the commands themselves.
PAGES.remove(ROOT / "docs/cli.md")
# What takes hours or a network, and its small counterpart in the world of these tests.
SMALL = {
    "--source sotu": "--source {documents} --model {lm} --hook-point layers.1 --context-length 16 --held-out-fraction 0.25 "
    "--held-out-tokens 320 --device cpu",
    "--hook-point mlp_hidden.5": "--hook-point mlp_hidden.1",
    "--max-tokens 300000": "--max-tokens 1600",
    "--max-tokens 20000": "--max-tokens 1600",
    "--tokens 500000": "--tokens 1500 --d-sae 64 --batch-tokens 75",
    "--tokens 50000": "--tokens 1500 --d-sae 64 --batch-tokens 75",
    "--report runs/report": "--report runs/report --evaluations core,position --settings 'core: {{loss_contexts: 4}}, "
    "position: {{null_draws: 20, groups: 4}}'",
    "--evaluations core,evenness": "--evaluations core,evenness --settings 'core: {{loss_contexts: 4}}'",
    "--pool 100": "--pool 2",
}
# These are run one after another, as a reader would; the other pages' commands are parsed.
RUN = ("quickstart.md", "extend.md")


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("scansion ")]


EVERY_COMMAND = sorted({(page.name, line) for page in PAGES for line in commands(page)})


@dataclass
class World:
    """A folder in which a reader of the quick start works, with a language model of three layers."""

    folder: Path
    lm: Path
    documents: Path
    call: Callable[..., tuple[int, str, str]]

    def run(self, line: str) -> str:
        """Run a command at its small size; returns what it printed."""
        for large, small in SMALL.items():
            line = line.replace(large, small.format(documents=self.documents, lm=self.lm))
        status, out, err = self.call(*shlex.split(line, comments=True)[1:])
        assert status == 0, f"{line}\n{err}"
        return out


@pytest.fixture(autouse=True)
def nothing_registered_stays(own_plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a snippet registers is unknown to the next test."""
    for registry in (MASKS, ARCHITECTURES, evaluations):
        monkeypatch.setattr(registry, "_items", dict(registry._items))


@pytest.fixture
def world(run, lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SCANSION_EVAL_DEVICE", "cpu")
    return World(tmp_path, lm_folder, documents, run)


@pytest.mark.parametrize(("page", "line"), EVERY_COMMAND)
def test_every_command_can_be_given(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and its flags exist, and their values have the right form."""
    monkeypatch.setenv(PLUGINS, "")
    monkeypatch.chdir(ROOT)
    tokens = shlex.split(line, comments=True)[1:]
    while tokens[0] == "--plugin":
        load_plugin(Path(tokens[1]))
        tokens = tokens[2:]
    if "--help" in tokens:
        return
    offer_all_architectures()
    _, bound, *_ = cli.app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert bound is not None


def test_the_quick_start_and_its_tutorial_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(ROOT / "docs/quickstart.md"):
        world.run(line)
    assert (world.folder / "runs/report/index.html").is_file()
    namespace: dict[str, Any] = {}
    for page in ("tutorial.md", "formats.md", "data.md"):
        for block in blocks(ROOT / "docs" / page, "python"):
            exec(compile(block, page, "exec", dont_inherit=True), namespace)
    assert "ok" in capsys.readouterr().out
    assert (world.folder / "mask.png").stat().st_size > 5_000 < (world.folder / "firing.png").stat().st_size
    namespace |= {"model": namespace["lm"].model, "tokenizer": namespace["lm"].tokenizer}
    (attaching,) = (block for block in blocks(ROOT / "docs/interop.md", "python") if "scansion.attach(" in block)
    exec(compile(attaching, "interop.md", "exec", dont_inherit=True), namespace)
    for line in commands(ROOT / "docs/extend.md"):
        world.run(line)


def test_every_public_name_has_an_example_that_runs(world: World) -> None:
    for line in (*commands(ROOT / "docs/quickstart.md")[:3], "scansion export runs/topk --out exported"):
        world.run(line)
    sae, metadata = scansion.load_sae("runs/topk")
    lm, held_out = scansion.load_language_model(metadata.model), scansion.ActivationStore("stores/sotu/held_out")
    plan = scansion.StudyPlan.model_validate(
        {**settings_of(world.lm, world.documents), "evaluations": {"core": {"loss_contexts": 0}}}
    )
    scansion.execute(plan, {index: f"runs/demo/run_{index}" for index in range(3)})
    record = scansion.StudyRecord.open("runs/demo")
    arm = record.arms[0]
    namespace: dict[str, Any] = {
        "__name__": "examples", "scansion": scansion, "sae": sae, "metadata": metadata, "lm": lm, "model": lm.model,
        "tokenizer": lm.tokenizer, "store": scansion.ActivationStore("stores/sotu/train"), "held_out": held_out,
        "loaded": scansion.LoadedSAE("topk", sae, metadata), "plan": plan, "record": record,
        "results": list(arm.evaluations().values()), "folders": {arm.name: arm.seed_folders[0]},
        "data": scansion.study_data(record),
        "source": scansion.HarvestSpec(str(world.lm), plan.hook_point, plan.corpus, device="cpu"),
    }  # fmt: skip
    [mask] = blocks(ROOT / "docs/masks.md", "python")
    exec(compile(mask, "masks.md", "exec", dont_inherit=True), namespace)
    failed: list[str] = []
    for name in sorted(scansion._HOME_OF):
        examples = DocTestParser().get_examples(getattr(scansion, name).__doc__ or "", name)
        assert examples, f"{name} has no example"
        own = dict(namespace)
        for example in examples:
            # It reads data that are not bundled with the tests or the hub, or a registered name is taken.
            if name in ("evaluate_sparse_probing", "register_mask", "push_to_hub", "from_pretrained"):
                compile(example.source, name, "exec", dont_inherit=True)
                continue
            try:
                exec(compile(example.source, name, "exec", dont_inherit=True), own)
            except Exception as error:
                failed.append(f"{name}: {example.source.strip()}: {type(error).__name__}: {error}")
    assert not failed


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples/notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_run(notebook: Path, world: World) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "outputs are not committed"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        for large, small in {
            "smollm2-135m": str(world.lm), "layers.5": "layers.1", 'source="sotu"': f'source="{world.documents}"',
            "max_tokens=100_000, held_out_tokens=20_000, pool=50": "max_tokens=1600, held_out_tokens=320, context_length=16",
            "d_sae=1152, k=32": "d_sae=64, k=8", "tokens=400_000, batch_tokens=1024": "tokens=1500, batch_tokens=75",
            "max_new_tokens=20": "max_new_tokens=5",
        }.items():  # fmt: skip
            code = code.replace(large, small)
        exec(compile(code, notebook.name, "exec", dont_inherit=True), namespace)
    if notebook.stem == "steer_at_a_position":
        change = (namespace["steered"] - namespace["plain"]).abs().amax(dim=-1)[0]
        assert not bool(change[:2].any()) and bool(change[2:].any())


def test_the_mask_of_the_guide_runs(world: World) -> None:
    [block] = blocks(ROOT / "docs/masks.md", "python")
    namespace: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block, "masks.md", "exec", dont_inherit=True), namespace)
    table = scansion.build_mask(namespace["EveryOtherConfig"](), 4, 6).table()
    assert table.tolist() == [[1, 0] * 3, [0, 1] * 3] * 2


def test_python_that_needs_other_libraries_is_python() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, page.name, "exec", dont_inherit=True)
