"""Grouping by bits gives the order that a stable sort gives: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution.cuda import grouping

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in each direction, for sizes that can be interpreted."""
    for name, size in (("ENTRIES", 16), ("FEATURES", 8), ("WORDS", 2)):
        monkeypatch.setattr(grouping, name, size)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n_tokens", "d_sae", "k"), [(1, 1, 1), (32, 8, 3), (33, 9, 4), (200, 20, 5)])
def test_entries_come_feature_by_feature_in_the_order_of_their_tokens(
    n_tokens: int, d_sae: int, k: int, zeros: float
) -> None:
    generator = torch.Generator().manual_seed(n_tokens)
    picked = torch.rand(n_tokens, d_sae, generator=generator).argsort(dim=1)[:, :k].sort(dim=1).values
    picked[:, -1] = picked[:, -1].where(torch.arange(n_tokens) % 3 > 0, 0)  # a duplicate feature among the zeros
    values = torch.rand(n_tokens, k, generator=generator) + 0.1
    values = values.where(torch.rand(n_tokens, k, generator=generator) >= zeros, 0.0)
    values[:, -1] = 0.0 if k > 1 else values[:, -1]
    features, tokens = picked.flatten().to(DEVICE), torch.arange(n_tokens, device=DEVICE).repeat_interleave(k)
    values = values.flatten().to(DEVICE)
    order, ordered_tokens, offsets = grouping.group(features, tokens, values, n_tokens, d_sae)
    kept = values.nonzero().squeeze(1)
    expected = kept[features[kept].sort(stable=True).indices]
    n = len(kept)
    assert order[:n].tolist() == expected.tolist() and ordered_tokens[:n].tolist() == tokens[expected].tolist()
    assert offsets.tolist() == [0, *torch.bincount(features[kept], minlength=d_sae).cumsum(0).tolist()]
    assert (order[n:] == 0).all() and (ordered_tokens[n:] == 0).all()


def test_a_nan_is_an_entry() -> None:
    nan = torch.tensor([torch.nan], device=DEVICE)
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    assert grouping.group(zero, zero, nan, 1, 1)[2].tolist() == [0, 1]


def test_no_entries() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    order, tokens, offsets = grouping.group(none, none, none.float(), 4, 3)
    assert len(order) == len(tokens) == 0 and offsets.tolist() == [0, 0, 0, 0]
