"""The report shows what may be compared, names the rest, escapes everything, and asks no other machine for anything."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from scansion.evals.bundle import Evaluations
from scansion.evals.core import CoreConfig, evaluate_core
from scansion.evals.probing_result import DatasetResult, SparseProbingResult
from scansion.evals.result import Estimate, Subject
from scansion.report import summarise, write_report
from scansion.sae import ReluConfig, SAEMetadata, build_sae
from tests.conftest import WIDTH

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src="//evil.example/x.png" onerror=alert(1)>',
    "</pre></details></svg><h1>{{ 7 * 7 }}",
    "$\\frac{$ & __name",
    "_hidden",
    "[bold red]shouting[/] [/nothing]",
]


@pytest.fixture
def evaluated(store):
    """``evaluated(name, **metadata)``: core results of a random SAE that says it was trained on the store."""
    identity = store.identity

    def make(name: str, seed: int = 0, **changes: Any) -> Evaluations:
        metadata = SAEMetadata(
            model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point,
            store_key="k", contexts="c", context_length=8, use_position_0=False, input_scale=1.0, steps=5, tokens=50,
            seed=seed, training={},
        )  # fmt: skip
        sae = build_sae(ReluConfig(d_sae=24), WIDTH, 8, torch.Generator().manual_seed(seed)).eval()
        (result,) = evaluate_core([Subject(name, sae, metadata)], store, never, CoreConfig(loss_contexts=0))
        # Changed afterwards, for an SAE of another model would not be evaluated on this store at all.
        changed = result.model_copy(update={"sae_metadata": metadata.model_copy(update=changes)})
        return Evaluations(changed, None)

    return make


def never() -> Any:
    raise AssertionError("the LM was loaded")


def probed(run: Evaluations, dataset: str) -> Evaluations:
    """The run with made-up probing results on one data set."""
    half = Estimate(value=0.75, low=0.7, high=0.8)
    figures: dict[str, Any] = {
        **{f"{kind}_test_accuracy": half for kind in ("bag", "lm", "sae", "random", "gain")}, "lm_over_bag": half,
        **{f"{kind}_top_k": {1: half, 5: half} for kind in ("lm", "sae", "random", "gain")},
    }  # fmt: skip
    probing = SparseProbingResult(
        sae=run.name, status="ok", reasons=[], sae_fingerprint=run.core.sae_fingerprint,
        sae_metadata=run.core.sae_metadata, data={}, seed=0, pooling="mean", **figures,
        datasets=[DatasetResult(name=dataset, stand_in=None, qualified=True, **figures, tasks=[])],
    )  # fmt: skip
    return Evaluations(run.core, probing)


def folders_of(runs: list[Evaluations], home: Path) -> dict[str, Path]:
    """A folder with two lines of metrics for each run."""
    folders = {run.name: home / str(index) for index, run in enumerate(runs)}
    for folder in folders.values():
        folder.mkdir(parents=True)
        lines = [{"tokens": 10 * step, "fve": 0.1 * step, "l0": 9 - step} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def write(runs: list[Evaluations], store, tmp_path: Path) -> tuple[str, Page]:
    page = write_report(runs, folders_of(runs, tmp_path / "runs"), store, tmp_path / "report")
    html = page.read_text(encoding="utf-8")
    return html, Page(html)


def svg_of(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])


def test_hostile_names_are_shown_and_nothing_else(evaluated, store, tmp_path: Path) -> None:
    runs = [probed(evaluated(name, seed=index), f"data {name}") for index, name in enumerate(HOSTILE)]
    html, page = write(runs, store, tmp_path)
    assert not {"script", "img", "iframe", "link", "object", "embed"} & set(page.tags)
    assert page.tags.count("h1") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    drawn = ["".join(element.itertext()) for element in svg_of(html).iter() if element.tag.endswith("text")]
    for name in HOSTILE:
        assert page.text.count(name) >= 4, "in the table, the legend, the heading of its probes and its provenance"
        assert f"data {name}" in page.text
        assert name in drawn, "the legend names every run"


def test_hostile_names_reach_the_terminal_as_they_are(evaluated) -> None:
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(summarise([evaluated(name) for name in HOSTILE]).table())
    shown = console.export_text()
    assert all(name in shown for name in HOSTILE)


def test_the_page_asks_no_other_machine_for_anything(evaluated, store, tmp_path: Path) -> None:
    html, page = write([probed(evaluated("run"), "words")], store, tmp_path)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert references, "the picture refers to its own parts"
    assert all(value.startswith("#") for value in references)
    assert all(target.strip("'\"").startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    namespaces = {value for name, value in page.attributes if name.startswith("xmlns")}
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses <= namespaces, "an address may only name a namespace"


def test_what_cannot_be_compared_is_named_and_not_drawn(evaluated, store, tmp_path: Path) -> None:
    first, other = evaluated("first"), evaluated("other", hook_point="resid_post.2")
    blank = Evaluations(evaluated("blank").core.model_copy(update={"status": "degenerate", "reasons": ["dead"]}), None)
    html, page = write([blank, first, other], store, tmp_path)
    assert "blank: degenerate: dead" in page.text
    assert "other: not comparable with first: hook_point is 'resid_post.2', not 'resid_post.1'" in page.text
    drawn = {"".join(element.itertext()) for element in svg_of(html).iter() if element.tag.endswith("text")}
    assert "first" in drawn and not {"other", "blank"} & drawn
    assert re.findall(r"<td>(first|other|blank)</td>", html) == ["first"]


def test_a_report_on_nothing_says_so_and_draws_nothing(evaluated, store, tmp_path: Path) -> None:
    blank = Evaluations(evaluated("blank").core.model_copy(update={"status": "degenerate", "reasons": ["dead"]}), None)
    _, page = write([blank], store, tmp_path)
    assert "no run can be compared" in page.text and "blank: degenerate: dead" in page.text
    assert not {"svg", "table"} & set(page.tags)
    assert not (tmp_path / "report/overview.png").exists()


def test_a_report_is_the_same_whenever_it_is_written(evaluated, store, tmp_path: Path) -> None:
    runs = [evaluated("one"), evaluated("two", seed=1)]
    folders = folders_of(runs, tmp_path / "runs")
    pages = [write_report(runs, folders, store, tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "other"), ("model_revision", "other"), ("hook_point", "resid_post.2"), ("contexts", "other"),
        ("context_length", 16), ("use_position_0", True), ("tokens", 100),
    ],
)  # fmt: skip
def test_runs_are_comparable_only_if_they_answer_the_same_question(evaluated, name: str, value: object) -> None:
    first = evaluated("first")
    assert summarise([first, evaluated("second", seed=3)]).set_apart == []
    ((who, why),) = summarise([first, evaluated("second", **{name: value})]).set_apart
    assert who == "second"
    assert why == f"not comparable with first: {name} is {value!r}, not {getattr(first.core.sae_metadata, name)!r}"


def test_runs_measured_differently_are_not_comparable(evaluated) -> None:
    first, second = evaluated("first"), evaluated("second")
    second = Evaluations(second.core.model_copy(update={"data": {**second.core.data, "store": "other"}}), None)
    assert "evaluated on other data" in summarise([first, second]).set_apart[0][1]


def test_every_row_has_every_column(evaluated) -> None:
    with_probes, without = probed(evaluated("with"), "words"), evaluated("without")
    summary = summarise([with_probes, without])
    assert [len(row) for row in summary.rows] == [len(summary.columns)] * 2
    assert summary.rows[1][-1] == "-"
    assert "95% bootstrap intervals" in summary.notes[1] and "position 0 left out" in summary.notes[0]
