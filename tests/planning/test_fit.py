"""The committed constants are those of the fit, and the fit is as good as docs/scale.md says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import fit_plan
from scansion.planning.machines import FITTED
from scansion.records import read_json


@pytest.fixture(scope="module")
def fitted() -> tuple[dict[str, Any], dict[str, Any]]:
    return fit_plan.kinds()


def test_the_committed_constants_are_those_of_the_script(fitted) -> None:
    stored, made = read_json(FITTED)["kinds"], fitted[0]["kinds"]
    assert stored.keys() == made.keys()
    for name, kind in made.items():
        assert stored[name]["basis"] == kind["basis"]
        for part in ("seconds_per", "floor"):
            assert stored[name][part] == pytest.approx(kind[part], rel=1e-3)
        for part in ("forward", "host"):
            assert stored[name][part] == pytest.approx(kind[part], rel=1e-3)


@pytest.mark.parametrize("kind", ["cpu2", "h200"])
def test_whole_steps_are_fitted_within_20_percent(fitted, kind: str) -> None:
    measurements, found = fitted[1][kind]
    whole = [one.size != fit_plan.STAGE for one in measurements]
    ratio = np.array([p / one.seconds for p, one in zip(found.predicted, measurements, strict=True)])[whole]
    assert np.abs(ratio - 1).max() < 0.2
    # Each by constants fitted to other sizes alone: one step of either kind is further off.
    held_out = np.array([p / one.seconds for p, one in zip(found.held_out, measurements, strict=True)])[whole]
    off = np.abs(held_out - 1)
    assert np.nansum(off > 0.2) <= 1 and np.nanmax(off) < 0.25


def test_constants_that_made_the_times_are_found_again() -> None:
    names = ("products", "active", "parameters")
    true = dict(zip(names, (2e-12, 3e-10, 1e-9), strict=True))
    generator = np.random.default_rng(0)
    measurements = []
    for number in range(8):
        work = dict.fromkeys(fit_plan.WORK, 0.0) | {name: float(10 ** generator.uniform(6, 9)) for name in names}
        seconds = sum(true[name] * work[name] for name in names)
        measurements.append(fit_plan.Measurement(f"step {number}", f"size {number}", work, seconds))
    found = fit_plan.fit(measurements)
    assert found.constants == pytest.approx(true, rel=1e-3)
    assert found.held_out == pytest.approx([one.seconds for one in measurements], rel=1e-3)


def test_the_page_says_what_the_fit_says() -> None:
    page = fit_plan.PAGE.read_text(encoding="utf-8")
    assert len(fit_plan.BLOCK.findall(page)) == 6
    assert fit_plan.written(page) == page, "run python -m benchmarks.fit_plan"
