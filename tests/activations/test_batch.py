"""A batch hands out its rows by position."""

from __future__ import annotations

import pytest
import torch

from scansion.activations import PositionedBatch
from scansion.errors import ShapeError


def test_rows_are_taken_by_position_and_not_by_place() -> None:
    batch = PositionedBatch(torch.arange(6.0).view(3, 2, 1), torch.tensor([2, 5, 7]))
    some = batch.at(torch.tensor([7, 2]))
    assert some.positions.tolist() == [7, 2]
    assert torch.equal(some.x, batch.x[[2, 0]])
    assert some.token_positions.shape == (2, 1)


@pytest.mark.parametrize("position", [0, 3, 8])
def test_a_position_that_is_not_there_is_an_error(position: int) -> None:
    batch = PositionedBatch(torch.zeros(3, 2, 1), torch.tensor([2, 5, 7]))
    with pytest.raises(ShapeError, match=r"has positions \[2, 5, 7\]"):
        batch.at(torch.tensor([position]))


def test_a_store_hands_out_positions_with_its_contexts(store) -> None:
    batch = store.contexts(3, 7)
    assert torch.equal(batch.positions, torch.arange(store.n_positions))
    assert batch.x.shape == (store.n_positions, 4, store.d_in)
    positions, contexts = torch.tensor([1, 4]), torch.tensor([[3, 5], [6, 4]])
    gathered = store.gather(positions, contexts)
    assert torch.equal(gathered.positions, positions)
    assert torch.equal(gathered.x[1, 0], batch.x[4, 3])
