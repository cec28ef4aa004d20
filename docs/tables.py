"""Write the tables of the docs that list what is registered: ``python docs/tables.py``. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scansion.evals import evaluations
from scansion.listing import settings_of
from scansion.masks import MASKS, MaskConfig
from scansion.registry import Registry
from scansion.sae import ARCHITECTURES, SAEConfig

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- registered: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(*rows: tuple[str, ...]) -> str:
    """Rows as Markdown, the first of them the heading."""
    cells = [[cell.replace("|", "\\|").replace("``", "`") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def names(registry: Registry[Any, Any]) -> str:
    """A row for everything registered: its name, and what it is."""
    return table((registry.kind, "what it is"), *((f"`{name}`", what) for name, what in registry.about().items()))


def settings(registry: Registry[Any, Any], base: type[Any]) -> str:
    """A row for every setting, first those that all have; a row stands for all that have it with the same default."""
    common = list(settings_of(base, registry.field))
    owners: dict[tuple[str, str, str], list[str]] = {setting: [] for setting in common}
    for name, config in zip(registry.names(), registry.configs(), strict=True):
        for setting in settings_of(config, registry.field):
            if setting not in common:
                owners.setdefault(setting, []).append(f"`{name}`")
    return table(
        ("setting", "default", registry.kind, "what it does"),
        *((f"`{name}`", f"`{default}`" if default else "", ", ".join(those) or "all", what)
          for (name, default, what), those in owners.items()),
    )  # fmt: skip


def figures() -> str:
    """A row for every evaluation: its name, what it measures, and its figures."""
    rows: Iterator[tuple[str, ...]] = (
        (f"`{name}`", what, ", ".join(f"`{figure.name}`" for figure in evaluations.called(name).figures))
        for name, what in evaluations.about().items()
    )
    return table(("evaluation", "what it measures", "figures"), *rows)


TABLES = {
    "masks": lambda: names(MASKS),
    "settings of masks": lambda: settings(MASKS, MaskConfig),
    "architectures": lambda: names(ARCHITECTURES),
    "settings of architectures": lambda: settings(ARCHITECTURES, SAEConfig),
    "evaluations": figures,
}


def written(page: str) -> str:
    """A page's text with its tables rewritten."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}\n{block[3]}", page)


if __name__ == "__main__":
    for path in DOCS.glob("*.md"):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
