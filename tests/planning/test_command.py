"""``scansion plan``: tables, JSON, settings from a file, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

GIVEN = ("--model", "gemma-2-2b", "--tokens", 10**9, "--hook-point", "layers.12")
SAES = ("--dictionaries", "topk, d_sae: 16384, k: 64, count: 8")
MACHINES = ("--machines", "h100, count: 8, disk: 2, price: 2.5")


def test_a_plan_is_printed(run) -> None:
    status, out, err = run("plan", *GIVEN, *SAES, *MACHINES, "--mtbf", 500, "--storage-price", 20)
    assert status == 0, err
    text = " ".join(out.split())
    for part in (
        "harvest",
        "bound by",
        "storage: 4.6 TB",
        "h100: derived, not measured",
        "costs as much as harvesting it",
    ):
        assert part in text, part
    assert "Young's formula gives" in text or "no checkpoint before the end" in text


def test_json_has_the_same_figures(run) -> None:
    status, out, err = run("plan", *GIVEN, *SAES, *MACHINES, "--mtbf", 5, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["store_bytes"] == 10**9 * 2304 * 2
    assert found["seconds"] == sum(stage["seconds"] for stage in found["stages"])
    assert found["failures"]["best"]["seconds"] in {one["seconds"] for one in found["failures"]["tried"]}


def test_settings_come_from_a_file(run, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        "plan:\n  model: gpt2\n  tokens: 1000000\n  dictionaries: ['relu, d_sae: 4096']\n  machines: ['cpu4']\n"
    )
    status, out, err = run("--config", tmp_path / "plan.yaml", "plan")
    assert status == 0, err
    assert "cpu4: derived, not measured" in " ".join(out.split())


def test_mistakes_are_one_line(run) -> None:
    for changed, said in (
        (("--machines", "h10"), "did you mean h100"),
        (("--machines", "h100, cost: 3"), "cost: there is no such setting"),
        (("--dictionaries", "gated, d_sae: 512", *MACHINES), "architecture"),
        (("--dictionaries", "topk", *MACHINES), "d_sae"),
        ((*MACHINES, "--mtbf", 10, "--ranks", 9), "no kind has the 9 machines"),
        (("--machines", "h100", "--mtbf", 10), "give the machines' disk"),
        (("--machines", ""), "the kind is missing; write a word"),
        ((*MACHINES, "--bytes-per-activation", 3), "2, 4"),
        ((*MACHINES, "--batch-tokens", 10**15), "a step takes batch_tokens 1,000,000,000,000,000"),
        (("--dictionaries", "topk, d_sae: 512, bands: 500", *MACHINES), "500 bands need as many positions"),
    ):
        given = changed if "--dictionaries" in changed else (*SAES, *changed)
        status, _, err = run("plan", *GIVEN, *given)
        assert status == 2 and said in " ".join(err.split()), (changed, err)
    status, _, err = run("plan", "--model", "gemma-3", "--tokens", 1, *SAES, *MACHINES)
    assert status == 2 and "Known: smollm2-135m" in " ".join(err.split())
