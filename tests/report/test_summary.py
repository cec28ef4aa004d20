"""The summary shows what may be compared, names the rest, and prints names as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.console import Console

from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.probing.result import DatasetResult, SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.report import probing_table, summarise
from scansion.sae import ReluConfig, SAEMetadata, build_sae
from scansion.study.compare.comparison import SHORT_NOTE
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

    def make(name: str, seed: int = 0, **changes: Any) -> RunResults:
        metadata = SAEMetadata(
            model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point,
            store_key="k", contexts="c", context_length=8, use_position_0=False, input_scale=1.0, steps=5, tokens=50,
            seed=seed, training={},
        )  # fmt: skip
        sae = build_sae(ReluConfig(d_sae=24), WIDTH, 8, torch.Generator().manual_seed(seed)).eval()
        (result,) = evaluate_core([LoadedSAE(name, sae, metadata)], store, never, CoreConfig(loss_contexts=0))
        # Changed afterwards, for an SAE of another model would not be evaluated on this store at all.
        changed = result.model_copy(update={"sae_metadata": metadata.model_copy(update=changes)})
        return RunResults({"core": changed})

    return make


def never() -> Any:
    raise AssertionError("the LM was loaded")


def probed(run: RunResults, dataset: str) -> RunResults:
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
    return RunResults({"core": run.core, "sparse_probing": probing})


def test_the_probing_table_has_a_row_a_run_and_set_with_its_controls_and_what_could_be_found(evaluated) -> None:
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    table = probing_table([probed(evaluated(name), "order/bigram_shift") for name in ("one", "other")])
    assert table is not None and [len(rows) for rows in table.groups] == [2]
    console.print(table.table())
    shown = console.export_text()
    assert "order/bigram_shift" in shown and "0.750 (+0.750 [+0.700, +0.800])" in shown
    # Half of the interval is 1.96 standard errors; what is found in 4 of 5 draws is 1.96 + 0.84 of them.
    assert f"{0.05 / 1.95996 * (1.95996 + 0.84162):.3f}" in shown
    assert probing_table([evaluated("never probed")]) is None


def test_hostile_names_reach_the_terminal_as_they_are(evaluated) -> None:
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(summarise([evaluated(name) for name in HOSTILE]).table())
    shown = console.export_text()
    assert all(name in shown for name in HOSTILE)


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


def test_another_name_of_the_same_model_is_compared(evaluated) -> None:
    revision = "xxh3:" + "a" * 32
    first = evaluated("first", model="./gemma", model_revision=revision)
    assert summarise([first, evaluated("second", model="/models/gemma", model_revision=revision)]).set_apart == []


def test_runs_measured_differently_are_not_comparable(evaluated) -> None:
    first, second = evaluated("first"), evaluated("second")
    second = RunResults({"core": second.core.model_copy(update={"data": {**second.core.data, "store": "other"}})})
    assert "core was measured on other data" in summarise([first, second]).set_apart[0][1]


def test_every_row_has_every_column(evaluated) -> None:
    with_probes, without = probed(evaluated("with"), "words"), evaluated("without")
    summary = summarise([with_probes, without])
    assert [len(row) for row in summary.rows] == [len(summary.columns)] * 2
    assert summary.rows[1][-1] == "-"
    assert "95% bootstrap intervals" in summary.notes[1] and "position 0 left out" in summary.notes[0]


def test_runs_of_few_steps_are_marked_short(evaluated) -> None:
    summary = summarise([evaluated("few"), evaluated("many", steps=5000), evaluated("unknown", steps=None)])
    assert [row[0] for row in summary.rows] == ["few (short)", "many", "unknown"] and SHORT_NOTE in summary.notes
    assert SHORT_NOTE not in summarise([evaluated("many", steps=5000)]).notes
