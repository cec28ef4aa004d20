"""The page on speed says what the result files say, table by table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import table
from scansion.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speed.md"


@pytest.mark.parametrize("name", table.TABLES)
def test_the_page_says_what_was_measured(name: str) -> None:
    made = table.block(name, ROOT / table.RESULTS, PAGE.parent / "images", "wall")
    assert table.BLOCK.format(name, made) in PAGE.read_text(encoding="utf-8")


def test_only_the_tables_are_written(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    before = PAGE.read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    table.write(results=tmp_path / "nothing", into=page)
    after = page.read_text(encoding="utf-8")
    assert after.count("Not measured yet") == len(table.TABLES)
    table_of = re.compile(r"(<!-- measured: [^>]+ -->).*?(<!-- end -->)", re.DOTALL)
    assert table_of.sub(r"\1\2", after) == table_of.sub(r"\1\2", before)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ConfigError, match="has 0 places for 'training'"):
        table.write(results=tmp_path, into=page)
