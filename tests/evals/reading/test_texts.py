"""Which token a text starts with, and which tokens count: one rule for every evaluation that reads texts."""

from __future__ import annotations

import pytest
import torch

from scansion.corpus import Contexts
from scansion.errors import EvalError
from scansion.evals.reading.texts import counted_tokens, start_token
from tests.conftest import make_tokenizer


def test_a_text_starts_with_bos_or_else_eos() -> None:
    tokenizer = make_tokenizer()
    assert start_token(tokenizer) == tokenizer.bos_token_id == 1
    tokenizer.bos_token = None
    assert start_token(tokenizer) == tokenizer.eos_token_id == 2
    tokenizer.eos_token = None
    with pytest.raises(EvalError, match="neither a BOS nor an EOS"):
        start_token(tokenizer)


def test_the_start_eos_and_padding_do_not_count() -> None:
    contexts = Contexts.from_token_lists([[1, 5, 2, 6], [2, 7]], 4, pad_id=2, has_bos=True)
    expected = torch.tensor([[False, True, False, True], [False, True, False, False]])
    assert torch.equal(counted_tokens(contexts, make_tokenizer()), expected)
