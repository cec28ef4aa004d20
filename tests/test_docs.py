"""The tables of masks, architectures and evaluations in the docs say what the registries say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import scansion
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


def test_the_reference_pages_are_as_the_code_says() -> None:
    reference = runpy.run_path(str(DOCS / "reference.py"))
    for page, write in reference["PAGES"].items():
        assert (DOCS / page).read_text(encoding="utf-8") == write(), f"{page}: run python docs/reference.py"


def test_every_public_name_has_its_place_in_the_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: scansion\.(.+)$", text, flags=re.MULTILINE)) == sorted(
        f"{module}.{name}" for module, names in scansion._HOMES.items() for name in names.split()
    )


def test_the_picture_of_the_first_page_is_of_the_masks_it_names() -> None:
    pictures = runpy.run_path(str(DOCS / "pictures.py"))
    figure = pictures["idea"]()
    for axis, config in zip(figure.axes, pictures["SHOWN"].values(), strict=False):
        [image] = axis.get_images()
        table = scansion.build_mask(config, pictures["POSITIONS"], pictures["FEATURES"]).table()
        assert (image.get_array() == table.detach().numpy().T).all()
