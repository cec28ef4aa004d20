"""The loop by which evaluations read a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.activations import harvest
from scansion.evals.reading.contexts import read_contexts
from scansion.sae import ReluConfig, build_sae
from tests.conftest import WIDTH, make_lm, make_plan, random_contexts


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_context_comes_once_in_order_and_invalid_tokens_are_zero(tmp_path: Path, batch_size: int) -> None:
    store = harvest(make_plan(tmp_path, random_contexts(10, shortest=3)), make_lm)
    positions = store.used_positions(False)
    sae = build_sae(ReluConfig(d_sae=32), WIDTH, store.n_positions, torch.Generator().manual_seed(0))
    told: list[float] = []
    parts = list(read_contexts(store, positions, 9, batch_size, told.append))
    assert [i for part in parts for i in range(part.contexts.start, part.contexts.stop)] == list(range(9))
    assert told == [len(part) for part in parts] and sum(told) == 9
    assert all(torch.equal(part.batch.positions, positions) for part in parts) and 0 not in positions
    valid = torch.cat([part.valid for part in parts], dim=1)
    assert torch.equal(valid, store.valid[positions][:, :9]) and not valid.all()
    acts = torch.cat([part.encode(sae) for part in parts], dim=1)
    expected = sae.encode(store.contexts(0, 9).at(positions)) * valid[..., None]
    assert torch.equal(acts > 0, expected > 0) and torch.allclose(acts, expected, atol=1e-6)
    assert not acts[~valid].any() and not acts.requires_grad
