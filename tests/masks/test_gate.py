"""What each mask does, as a value: one row per way of acting."""

from __future__ import annotations

import pytest

from scansion.masks import Gate, NoMaskConfig, SoftMaskConfig, build_mask
from tests.masks.families import BANDED, D_SAE, L, with_acts_on

NONE = Gate("none")
EXPECTED = {
    ("random_hard", "forward"): Gate("binary", forward=True),
    ("random_hard", "both"): Gate("binary", forward=True),
    ("random_hard", "straight_through"): Gate("binary", forward=True),
    ("random_hard", "gradient"): Gate("binary", gradient=True),
    ("random_hard", "placebo"): NONE,
    ("soft", "forward"): Gate("weights", forward=True),
    ("soft", "both"): Gate("weights", forward=True, gradient=True),
    ("soft", "straight_through"): Gate("straight_through", forward=True),
    ("soft", "gradient"): Gate("weights", gradient=True),
    ("soft", "placebo"): NONE,
}
ONLY_BLOCK = {("random_hard", how) for how in ("forward", "both", "straight_through", "placebo")} | {
    ("soft", "placebo")
}


@pytest.mark.parametrize(("family", "acts_on"), EXPECTED)
def test_a_mask_says_what_it_does(family: str, acts_on: str) -> None:
    mask = build_mask(with_acts_on(family, acts_on), L, D_SAE)
    assert mask.gate == EXPECTED[family, acts_on]
    assert mask.gate.only_blocks == ((family, acts_on) in ONLY_BLOCK)


@pytest.mark.parametrize("family", BANDED)
def test_bands_are_part_of_the_gate_where_the_mask_acts_forward(family: str) -> None:
    for acts_on in ("forward", "both", "straight_through"):
        gate = build_mask(with_acts_on(family, acts_on), L, D_SAE).gate
        assert gate.kind == "binary" and gate.bands is not None and gate.bands.edges[-1] == L
    for acts_on in ("gradient", "placebo"):
        assert build_mask(with_acts_on(family, acts_on), L, D_SAE).gate.bands is None


def test_no_mask_and_all_features_shared_do_nothing() -> None:
    assert build_mask(NoMaskConfig(), L, D_SAE).gate == NONE
    assert build_mask(SoftMaskConfig(shared=0.99999), L, D_SAE).gate == NONE
