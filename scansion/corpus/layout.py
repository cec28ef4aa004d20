"""Lay out the tokens of documents in contexts: packed one after another, or every document in contexts of its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch

from scansion.corpus.config import CorpusConfig
from scansion.corpus.contexts import TURN_TENSORS, Contexts


class Layout:
    """Collects the tokens of documents, counts the contexts they fill, and builds these.

    Args:
        config: layout, context length, and what happens to long documents.
        bos_id: token id at position 0 of every context; None for contexts without BOS.
        pad_id: token id written at padding.
    """

    def __init__(self, config: CorpusConfig, bos_id: int | None, pad_id: int) -> None:
        self._packed = config.layout == "packed"
        self._length = config.context_length
        self._room = config.context_length - (bos_id is not None)
        self._truncate = config.long_documents == "truncate" and not self._packed
        self._bos_id = bos_id
        self._pad_id = pad_id
        self._tokens: list[np.ndarray] = []
        self._doc_ids: list[int] = []
        self._turns: list[np.ndarray | None] = []
        self._used = 0
        # Valid tokens in the first 1, 2, ... of the settled contexts.
        self._tokens_through: list[int] = []

    @property
    def n_documents(self) -> int:
        """Documents collected that have at least one token."""
        return len(self._doc_ids)

    @property
    def n_settled_tokens(self) -> int:
        """Tokens, BOS included, in contexts that are complete: another document would not change them."""
        return self._tokens_through[-1] if self._tokens_through else 0

    def contexts_with(self, n_tokens: int) -> int | None:
        """How many of the first contexts hold at least ``n_tokens`` tokens, BOS included; None if all do not."""
        n_contexts = bisect_left(self._tokens_through, n_tokens) + 1
        return n_contexts if n_contexts <= len(self._tokens_through) else None

    def add(self, doc_id: int, tokens: Sequence[int], turns: np.ndarray | None = None) -> None:
        """Add one document, and the turn of each of its tokens if it is a chat."""
        used = slice(self._room if self._truncate else None)
        ids = np.asarray(tokens[used], dtype=np.int32)
        if len(ids):
            self._tokens.append(ids)
            self._doc_ids.append(doc_id)
            self._turns.append(None if turns is None else turns[used])
            gap = self._gap_after(len(ids))
            self._used += len(ids) + gap
            while len(self._tokens_through) < self._used // self._room:
                self._tokens_through.append(self.n_settled_tokens + self._length)
            if gap:  # the context that the document ends in
                self._tokens_through[-1] -= gap

    def contexts(self, limit: int | None = None) -> Contexts:
        """The first ``limit`` contexts, or all of them; at least one document must have been added."""
        n_rows = -(-self._used // self._room)
        n_contexts = n_rows if limit is None else min(limit, n_rows)
        slots = n_rows * self._room
        tokens = np.full(slots, self._pad_id, np.int32)
        doc_ids = np.full(slots, -1, np.int32)
        doc_positions = np.full(slots, -1, np.int32)
        # The turn of each token and its position in that; nothing for documents that are no chats.
        in_turns = [
            np.full(slots, -1, np.int32) for _ in range(2 if any(each is not None for each in self._turns) else 0)
        ]
        start = 0
        for doc_id, ids, turns in zip(self._doc_ids, self._tokens, self._turns, strict=True):
            here = slice(start, start + len(ids))
            tokens[here] = ids
            doc_ids[here] = doc_id
            doc_positions[here] = np.arange(len(ids))
            if turns is not None:
                in_turns[0][here], in_turns[1][here] = turns, _positions_in(turns)
            start = here.stop + self._gap_after(len(ids))

        def rows(flat: np.ndarray) -> np.ndarray:
            return flat.reshape(-1, self._room)[:n_contexts]

        tokens, doc_ids, doc_positions = rows(tokens), rows(doc_ids), rows(doc_positions)
        in_turns = [rows(each) for each in in_turns]
        if self._bos_id is not None:
            tokens = _with_first_column(tokens, self._bos_id)
            doc_ids = np.concatenate([doc_ids[:, :1], doc_ids], axis=1)
            doc_positions = _with_first_column(doc_positions, -1)
            in_turns = [_with_first_column(each, -1) for each in in_turns]
        valid = torch.from_numpy(doc_ids >= 0)
        columns = torch.arange(self._length, dtype=torch.int32).expand(n_contexts, self._length)
        return Contexts(
            tokens=torch.from_numpy(tokens),
            valid=valid,
            positions=columns.where(valid, 0),
            doc_ids=torch.from_numpy(doc_ids),
            doc_positions=torch.from_numpy(doc_positions),
            **dict(zip(TURN_TENSORS, map(torch.from_numpy, in_turns), strict=False)),
        )

    def _gap_after(self, n_tokens: int) -> int:
        """Tokens of padding after a document: 0 if packed, else up to the start of the next context."""
        return 0 if self._packed else -n_tokens % self._room


def _with_first_column(rows: np.ndarray, value: int) -> np.ndarray:
    return np.concatenate([np.full((len(rows), 1), value, np.int32), rows], axis=1)


def _positions_in(turns: np.ndarray) -> np.ndarray:
    """The index of each token in its turn, from the turn of each, which never falls."""
    begins = np.flatnonzero(np.diff(turns, prepend=turns[:1] - 1))
    return np.arange(len(turns)) - np.repeat(begins, np.diff(begins, append=len(turns)))
