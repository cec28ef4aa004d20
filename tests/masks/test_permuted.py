"""A permuted mask is the mask it was made from, with columns in another order, whatever is asked of it."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import ShapeError
from scansion.masks import PermutedMask, build_mask
from tests.masks.families import D_SAE, FAMILIES, L

POSITIONS = torch.arange(L)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_column_is_that_of_the_feature_it_was_dealt(family: str) -> None:
    mask = build_mask(FAMILIES[family], L, D_SAE)
    order = torch.randperm(mask.d_bound, generator=torch.Generator().manual_seed(0))
    moved = PermutedMask(mask, order)
    columns = torch.cat([torch.arange(mask.n_shared), mask.n_shared + order])
    assert torch.equal(moved(POSITIONS), mask(POSITIONS)[:, columns])
    assert torch.equal(moved.table(), mask.table()[:, columns])
    assert torch.equal(moved.is_open(POSITIONS), mask.is_open(POSITIONS)[:, columns])
    assert torch.equal(moved.can_fire(POSITIONS), mask.can_fire(POSITIONS)[:, columns])
    pre_acts = torch.randn(L, D_SAE, generator=torch.Generator().manual_seed(1))
    theirs = mask.apply_to(pre_acts[:, columns.argsort()], POSITIONS, torch.relu).acts[:, columns]
    assert torch.allclose(moved.apply_to(pre_acts, POSITIONS, torch.relu).acts, theirs)


def test_what_is_no_permutation_is_refused() -> None:
    mask = build_mask(next(iter(FAMILIES.values())), L, D_SAE)
    with pytest.raises(ShapeError, match="should be a permutation of the"):
        PermutedMask(mask, torch.zeros(mask.d_bound, dtype=torch.int64))
