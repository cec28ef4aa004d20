"""The README's Python example runs as printed, on a store that a user of it would have made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scansion.activations import ActivationStore
from tests.conftest import random_contexts

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs_as_printed(make_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name in ("train", "held_out"):
        store = make_store(random_contexts(60, length=12, seed=len(name)), f"stores/sotu/{name}")
        assert isinstance(store, ActivationStore)
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    shape, status = re.search(r"torch.Size\(\[(\d+, \d+, \d+)\]\) (\w+)", capsys.readouterr().out).groups()
    assert (shape, status) == ("12, 16, 512", "ok")


def test_every_picture_and_page_it_names_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and all((README.parent / link).is_file() for link in links), links
