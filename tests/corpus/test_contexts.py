"""Contexts: every token keeps its position and document, whatever is done to the rows."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scansion.corpus import Contexts
from scansion.errors import CorpusError, ShapeError

FIELDS = ("tokens", "valid", "positions", "doc_ids", "doc_positions")
LISTS = [[1, 5, 6], [1], [1, 7, 8, 9, 2]]
token_lists = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=7), min_size=1, max_size=6)


def contexts() -> Contexts:
    return Contexts.from_token_lists(LISTS, length=5, pad_id=0, has_bos=True)


def tensors(value: Contexts) -> dict[str, torch.Tensor]:
    return {name: getattr(value, name) for name in FIELDS}


def test_from_token_lists_says_where_every_token_is() -> None:
    made = contexts()
    assert (made.n_contexts, len(made), made.length, made.n_tokens) == (3, 3, 5, 9)
    assert made.tokens.tolist() == [[1, 5, 6, 0, 0], [1, 0, 0, 0, 0], [1, 7, 8, 9, 2]]
    assert made.positions.tolist() == [[0, 1, 2, 0, 0], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert made.doc_ids.tolist() == [[0, 0, 0, -1, -1], [1, -1, -1, -1, -1], [2, 2, 2, 2, 2]]
    assert made.doc_positions.tolist() == [[-1, 0, 1, -1, -1], [-1, -1, -1, -1, -1], [-1, 0, 1, 2, 3]]


def test_without_bos_the_document_starts_at_the_first_token() -> None:
    made = Contexts.from_token_lists(LISTS, length=5, pad_id=0)
    assert made.doc_positions[made.valid].equal(made.positions[made.valid])


@given(token_lists)
def test_valid_tokens_are_the_lists(lists) -> None:
    made = Contexts.from_token_lists(lists, length=7, pad_id=0)
    assert [row[keep].tolist() for row, keep in zip(made.tokens, made.valid, strict=True)] == lists


@given(token_lists)
def test_left_padding_moves_tokens_and_changes_nothing_else(lists) -> None:
    right = Contexts.from_token_lists(lists, length=7, pad_id=0, has_bos=True)
    left = right.left_padded()
    for name in FIELDS:
        for row in range(len(lists)):
            before, after = getattr(right, name)[row], getattr(left, name)[row]
            n = int(right.valid[row].sum())
            assert after[7 - n :].equal(before[:n])
            assert after[: 7 - n].equal(before[n:])
    assert left.left_padded().fingerprint == left.fingerprint


@pytest.mark.parametrize("bad", [[], [1] * 6], ids=["empty", "long"])
def test_a_list_that_does_not_fit_is_named(bad) -> None:
    with pytest.raises(CorpusError, match=f"token list 1 has {len(bad)} tokens; expected 1 to 5"):
        Contexts.from_token_lists([[1], bad], length=5, pad_id=0)


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_shapes_and_types_are_named(name, monkeypatch) -> None:
    # The tests' type checker would speak first; users do not have it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    good = tensors(contexts())
    with pytest.raises(ShapeError, match=rf"{name} should have shape .* but has \[3, 5, 1\]"):
        Contexts(**good | {name: good[name][:, :, None]})
    with pytest.raises(ShapeError, match=f"{name} should be"):
        Contexts(**good | {name: good[name].to(torch.int64)})


@pytest.mark.parametrize("index", [slice(1, None), torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_indexing_picks_rows_of_every_tensor(index) -> None:
    picked = contexts()[index]
    for name, tensor in tensors(contexts()).items():
        assert getattr(picked, name).equal(tensor[index])


def test_fingerprint_depends_on_contents_only() -> None:
    made = contexts()
    strided = {name: tensor.t().contiguous().t() for name, tensor in tensors(made).items()}
    assert not strided["tokens"].is_contiguous()
    assert Contexts(**strided).fingerprint == made.fingerprint == made[torch.arange(3)].fingerprint


@pytest.mark.parametrize("name", FIELDS)
def test_fingerprint_notices_one_changed_element(name) -> None:
    changed = {key: tensor.clone() for key, tensor in tensors(contexts()).items()}
    changed[name][1, 2] = 1
    assert Contexts(**changed).fingerprint != contexts().fingerprint


def test_fingerprint_tells_shapes_apart() -> None:
    assert contexts()[:0].fingerprint != Contexts.from_token_lists([], length=4, pad_id=0).fingerprint
