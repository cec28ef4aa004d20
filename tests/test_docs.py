"""The tables of masks, architectures and evaluations in the docs say what the registries say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import scansion
from scansion.evals.statistics import Estimate
from scansion.masks import MASKS
from scansion.study.compare.comparison import Difference
from scansion.study.compare.figures import figure

DOCS = Path(__file__).parents[1] / "docs"
TABLES = runpy.run_path(str(DOCS / "tables.py"))
FINDINGS = runpy.run_path(str(DOCS / "findings.py"))


def links_of(text: str) -> list[str]:
    """What stands after ``](``, up to and with the bracket that ends it, or as far as the link goes on without one."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]*\)?)", prose)


def test_every_link_is_closed_and_leads_somewhere() -> None:
    assert links_of("[a](b.md) and [c](d.md\nwithout end") == ["b.md)", "d.md"]
    for page in (*DOCS.parent.glob("*.md"), *DOCS.glob("*.md")):
        for link in links_of(page.read_text(encoding="utf-8")):
            assert link.endswith(")"), f"{page.name}: {link} has no end"
            target = link[:-1].partition("#")[0]
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target} is not there"


def test_every_table_is_as_the_registries_say() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    shown = [block[1] for text in pages.values() for block in TABLES["BLOCK"].findall(text)]
    assert sorted(shown) == sorted(TABLES["TABLES"])
    for path, text in pages.items():
        assert TABLES["written"](text) == text, f"{path.name}: run python docs/tables.py"


def test_what_the_pages_say_was_found_is_what_the_results_say() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in FINDINGS["PAGES"]}
    assert any(FINDINGS["BLOCK"].search(text) for text in pages.values())
    for path, text in pages.items():
        assert FINDINGS["written"](text) == text, f"{path.name}: run python docs/findings.py"


@pytest.mark.parametrize(
    ("interval", "p", "kind"),
    [
        ((0.02, 0.04), 0.01, "higher"),
        ((-0.04, -0.02), 0.01, "lower"),
        ((0.005, 0.04), 0.01, "higher, perhaps by less than that"),
        ((0.02, 0.04), 0.06, "undecided"),  # Holm's correction took it back
        ((-0.02, 0.04), 0.5, "undecided"),
        ((0.001, 0.009), 0.01, "equivalent"),
        ((0.0, 0.0), None, "equal at every seed"),
        ((None, None), None, "without an interval"),
    ],
)
def test_a_difference_is_called_what_its_interval_allows(
    interval: tuple[float | None, float | None], p: float | None, kind: str
) -> None:
    estimate = Estimate(value=0.0, low=interval[0], high=interval[1])
    difference = Difference(estimate=estimate, p=p, p_holm=p, detectable=None, seeds=[0, 1, 2])
    assert FINDINGS["_kind"](difference, 0.01) == kind


def test_a_picture_of_differences_is_of_those_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    pictures = runpy.run_path(str(DOCS / "pictures.py"))
    study = DOCS.parent / "results/positional_masking_gpt2_0"
    names, found = FINDINGS["decisive"](FINDINGS["record_of"](study)), FINDINGS["compared"](study)
    others = [arm for arm in found.arms if arm.name != found.baseline]
    axes = pictures["differences"](study.name).axes
    assert len(axes) == len(names) and [tick.get_text() for tick in axes[0].get_yticklabels()] == [
        a.name for a in others
    ]
    for axis, name in zip(axes, names, strict=True):
        points = [line for line in axis.get_lines() if line.get_marker() == "o"]
        drawn = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in points}
        scale = figure(name).scale
        wanted = {
            i: arm.differences[name].estimate.value * scale for i, arm in enumerate(others) if name in arm.differences
        }
        assert drawn == pytest.approx(wanted)


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
