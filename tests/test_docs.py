"""The tables of masks, architectures and evaluations in the docs say what the registries say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from scansion.masks import MASKS

DOCS = Path(__file__).parents[1] / "docs"
TABLES = runpy.run_path(str(DOCS / "tables.py"))


def test_every_table_is_as_the_registries_say() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    shown = [block[1] for text in pages.values() for block in TABLES["BLOCK"].findall(text)]
    assert sorted(shown) == sorted(TABLES["TABLES"])
    for path, text in pages.items():
        assert TABLES["written"](text) == text, f"{path.name}: run python docs/tables.py"


def test_every_mask_family_is_defined() -> None:
    text = (DOCS / "masks.md").read_text(encoding="utf-8")
    definitions = text.split("| family | weight of feature")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", definitions, flags=re.MULTILINE)) == sorted(MASKS.names())
