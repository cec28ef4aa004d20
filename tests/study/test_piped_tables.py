"""Tables that go through a pipe fit 100 columns: no word is cut, and a table that is too wide goes on below."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from rich.cells import cell_len
from rich.console import Console

from scansion.report import budget_table, position_table, probing_table, summarise
from scansion.text_table import TextTable
from tests.study.conftest import Carried

Run = Callable[..., tuple[int, str, str]]
WIDTH = 100


def shown(table: TextTable, width: int = WIDTH) -> list[str]:
    file = StringIO()
    Console(file=file, width=width).print(table)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= width
    return lines


def cells_of(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in "│┃"]


def require_whole(table: TextTable, lines: list[str]) -> None:
    """Every word of every cell stands whole in what was printed."""
    printed = {word for row in cells_of(lines) for cell in row for word in cell.split()}
    for text in (*table.columns, *(cell for rows in table.groups for row in rows for cell in row)):
        assert set(text.split()) <= printed, text


@pytest.mark.parametrize("seed", range(20))
def test_no_cell_is_lost_whatever_the_table(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def text(most: int) -> str:
        sizes = torch.randint(1, 20, (int(torch.randint(1, most, (), generator=generator)),), generator=generator)
        return " ".join("word" * 5 if size == 19 else "x" * int(size) for size in sizes)

    n_columns, n_rows = (int(n) for n in torch.randint(1, 16, (2,), generator=generator))
    rows = [[text(4) for _ in range(n_columns)] for _ in range(n_rows)]
    table = TextTable([text(6) for _ in range(n_columns)], [rows, rows[:1]], title="a title", caption="below")
    lines = shown(table)
    require_whole(table, lines)
    assert sum(line.startswith("a title") for line in lines) == sum(line.startswith("┏") for line in lines)
    wide = shown(table, 10_000)
    assert sum(line.startswith("┏") for line in wide) == 1 and len(cells_of(wide)) == 2 + n_rows


def test_a_word_wider_than_the_line_is_folded_and_not_cut() -> None:
    lines = shown(TextTable(["run", "x"], [[["n" * 250, "1"]]]))
    assert "".join(row[0] for row in cells_of(lines)[1:]) == "n" * 250


def test_a_short_number_with_its_interval_stays_on_one_line() -> None:
    table = TextTable(["run", *[f"figure {i} of many" for i in range(9)]], [[["plain", *["0.123 [0.100, 0.150]"] * 9]]])
    rows = cells_of(shown(table))
    assert sum(row.count("0.123 [0.100, 0.150]") for row in rows) == 9
    assert sum(row[0] == "plain" for row in rows) > 1, "each part names its rows"


def test_every_command_with_a_table(run: Run, carried: Carried, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(carried.plan.model_dump(mode="json", exclude_none=True)))
    trained, held_out = carried.seed_folder(0), carried.held_out.folder
    core = ("--evaluations", "core,position", "--settings", "core: {loss_contexts: 0}, position: {mask_draws: 1}")
    commands = {
        "compare": ("compare", *carried.folders.values(), "--every"),
        "study plan": ("study", "plan", tmp_path / "plan.yaml", "--out", tmp_path / "out"),
        "eval": ("eval", trained, "--held-out", held_out, *core),
        "look": ("look", trained, " ".join(f"w{i}" for i in range(3, 15)), "--features", 20),
    }
    for name, command in commands.items():
        status, out, err = run(*command)
        assert status == 0, err
        lines = [line for line in out.splitlines() if line[:1] in set("┏┃┡│├└")]
        assert lines and max(map(cell_len, lines)) <= WIDTH and "…" not in "".join(lines), name
    results = list(carried.results.values())[:2]
    for made in (summarise(results), probing_table(results), position_table(results), budget_table(results)):
        assert made is not None
        require_whole(made.table(), shown(made.table()))
