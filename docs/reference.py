"""Write the reference pages of commands and public names: ``python docs/reference.py``. A test compares them."""

from __future__ import annotations

from pathlib import Path

import scansion
from scansion.cli import app
from scansion.cli.training import offer_all_architectures

DOCS = Path(__file__).parent
# Heading -> the modules of `scansion._HOMES` whose names stand under it.
SECTIONS = {
    "Text and activations": ("corpus", "lm", "activations", "pipeline"),
    "Masks": ("masks",),
    "SAEs": ("sae", "training"),
    "Evaluation": ("evals.base", "evals.core.evaluate", "evals.probing.evaluate"),
    "Questions about a trained SAE": ("exploring", "plots", "attaching"),
    "Other libraries": ("interop",),
    "Studies and reports": ("study", "report"),
    "Errors": ("errors",),
}


def commands() -> str:
    """Every command with its settings, as ``--help`` shows them."""
    offer_all_architectures()
    text = app.generate_docs(output_format="markdown", heading_level=1)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines()).replace("# scansion\n", "# Commands\n", 1)


def names() -> str:
    """Every public name, by section, for mkdocstrings to fill in."""
    parts = ["# Python", "Everything here can be imported from `scansion`. Each name is loaded when it is first used."]
    for heading, modules in SECTIONS.items():
        parts.append(f"## {heading}")
        parts += [f"::: scansion.{module}.{name}" for module in modules for name in _names_in(module)]
    return "\n\n".join(parts) + "\n"


def _names_in(module: str) -> list[str]:
    return sorted(scansion._HOMES.get(module, "").split())


PAGES = {"cli.md": commands, "api.md": names}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
