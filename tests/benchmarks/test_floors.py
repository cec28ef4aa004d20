"""The least work of a step is what the documentation's table of floors says, and exponents are those of power laws."""

from __future__ import annotations

import pytest

from benchmarks.growth import exponent
from benchmarks.limits import limits, limits_work, step_work, useful_flop


@pytest.mark.parametrize(
    ("kind", "bands", "mega"),
    [("relu", 1, 26.5), ("topk", 1, 5.46), ("batch_topk", 1, 5.46), ("topk", 8, 0.81), ("topk", 32, 0.31)],
)
def test_useful_operations_are_those_of_the_page(kind: str, bands: int, mega: float) -> None:
    assert useful_flop(kind, 576, 4608, 32, bands) / 1e6 == pytest.approx(mega, abs=0.05)


def test_work_grows_with_tokens_and_adam_does_not() -> None:
    one, two = (step_work("topk", 8, 64, 4, tokens) for tokens in (100, 200))
    assert two["flop"] == 2 * one["flop"]
    assert two["selection_bytes"] == 2 * one["selection_bytes"]
    assert two["adam_bytes"] == one["adam_bytes"] == 28 * 2 * 8 * 64


def test_every_limit_has_its_work() -> None:
    sizes = {"square": 8, "copied": 16}
    assert limits(4, 8, 16, **sizes).keys() == limits_work(4, 8, 16, **sizes).keys()


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power: float) -> None:
    values = [1, 2, 5, 10]
    found = exponent(values, [3.0 * value**power for value in values])
    assert found == pytest.approx({"fitted": power, "last": power}, abs=1e-9)
