"""From a source of text to training and held-out contexts, which have no document in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from scansion.corpus.chat import chat_tokens
from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.contexts import Contexts
from scansion.corpus.layout import Layout
from scansion.corpus.pretokenised import check_ids, check_tokenised_by
from scansion.corpus.rows import Chat, Row, TokenIds
from scansion.corpus.sources import read_documents, read_rows
from scansion.corpus.tokenizers import start_and_padding, token_ids, tokenizer_fingerprint
from scansion.errors import CorpusError
from scansion.files import fingerprint
from scansion.progress import progress, say

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait

BATCH_CHARACTERS = 1_000_000
FEW_DOCUMENTS = 5
"""Fewer held-out documents than these are worth a line: one of them would move every score."""


@dataclass(frozen=True)
class CorpusSplits:
    """Training and held-out contexts, and where they come from.

    Args:
        train: for training.
        held_out: for evaluation; no document is in both.
        fingerprint: hash of both sets of contexts and the tokenizer.
        provenance: how the contexts were made, as JSON values.
    """

    train: Contexts
    held_out: Contexts
    fingerprint: str
    provenance: dict[str, Any]


def load_contexts(config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase) -> CorpusSplits:
    """Read, split, tokenise and lay out the corpus.

    Whether a document is held out depends only on its text and the seed. So copies of a document are never on both sides,
    and the order of reading changes nothing. Reading ends once both sides have ``pool`` times the tokens they need. The
    contexts to use are then drawn at random; they stay in the order in which they were read.

    Args:
        config: the corpus.
        tokenizer: a fast tokenizer.

    Raises:
        CorpusError: unreadable text, no text on one side of the split, or a tokenizer that does not fit.
    """
    tokenizer_name = tokenizer_fingerprint(tokenizer)
    bos_id, pad_id = _bos_and_padding(config, tokenizer)
    train = _Side("train", config.max_tokens, config, Layout(config, bos_id, pad_id))
    held_out = _Side("held-out", config.held_out_tokens, config, Layout(config, bos_id, pad_id))
    n_documents, n_different = _fill(train, held_out, config, _Tokens(config, tokenizer, bos_id))
    for side in (train, held_out):
        side.require_text(n_documents, n_different)
    generator = torch.Generator().manual_seed(config.seed)
    contexts = [side.draw(generator) for side in (train, held_out)]
    provenance = {
        "config": config.model_dump(mode="json"),
        "tokenizer": tokenizer_name,
        "documents_read": n_documents,
        "train": train.account(contexts[0]),
        "held_out": held_out.account(contexts[1]),
    }
    say_what_is_short(provenance)
    hashed = fingerprint([*(part.fingerprint for part in contexts), tokenizer_name])
    return CorpusSplits(*contexts, fingerprint=hashed, provenance=provenance)


def held_out_documents(config: CorpusConfig) -> list[str]:
    """The whole documents that :func:`load_contexts` holds out, among the first ``max_documents``.

    Raises:
        CorpusError: the text cannot be read, or a hub source has no ``max_documents`` to stop at.
    """
    if config.source.startswith(HUB_PREFIX) and config.max_documents is None:
        raise CorpusError(f"{config.source!r} would be read to its end; set max_documents")
    return [text for text in read_documents(config) if _is_held_out(text.encode("utf-8"), config)]


def read_training_documents(config: CorpusConfig) -> Iterator[str]:
    """The whole documents that :func:`load_contexts` does not hold out, as they are read.

    Raises:
        CorpusError: the text cannot be read.
    """
    return (text for text in read_documents(config) if not _is_held_out(text.encode("utf-8"), config))


class _Side:
    """One side of the split: tokens needed, tokens read, and the random draw of whole contexts."""

    def __init__(self, name: str, tokens: int | None, config: CorpusConfig, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self._config = config
        self.needed = tokens
        self.wanted = tokens
        if tokens is not None and config.pool > 1:
            self.wanted = math.ceil(self.n_full(tokens) * config.pool) * config.context_length

    def n_full(self, tokens: int) -> int:
        """Contexts that so many tokens take if none has padding."""
        return math.ceil(tokens / self._config.context_length)

    @property
    def n_pooled(self) -> int:
        return min(self.layout.n_settled_tokens, self.wanted or self.layout.n_settled_tokens)

    @property
    def full(self) -> bool:
        return self.n_pooled == self.wanted

    def require_text(self, n_documents: int, n_different: int) -> None:
        if self.layout.n_documents:
            return
        if n_different < 2:
            equal = "" if n_documents < 2 else ", all equal"
            raise CorpusError(
                f"the corpus has {n_documents} document{'' if n_documents == 1 else 's'}{equal}; a held-out split by document "
                "needs at least 2 different ones, better many; add documents, or cut the text into several files"
            )
        copies = f", {n_different} of them different," if n_different < min(n_documents, FEW_DOCUMENTS) else ""
        raise CorpusError(
            f"none of the {n_documents} documents{copies} is on the {self.name} side with "
            f"held_out_fraction={self._config.held_out_fraction}; add documents, or change the fraction or the seed"
        )

    def draw(self, generator: torch.Generator) -> Contexts:
        pool = self.layout.contexts(self.wanted and self.layout.contexts_with(self.wanted))
        # The pool has no context to spare if it holds less than one context more than needed.
        if self.needed is None or pool.n_tokens - pool.length < self.needed:
            return pool
        order = torch.randperm(len(pool), generator=generator)
        tokens_through = pool.valid.sum(dim=1)[order].cumsum(0)
        n_contexts = int(torch.searchsorted(tokens_through, self.needed)) + 1
        return pool[order[:n_contexts].sort().values]

    def account(self, contexts: Contexts) -> dict[str, Any]:
        return {
            "contexts": len(contexts),
            # If none had padding. The name is older, and part of the identity of stores that never had any.
            "contexts_asked": None if self.needed is None else self.n_full(self.needed),
            "tokens": contexts.n_tokens,
            "documents": int(contexts.doc_ids[contexts.valid].unique().numel()),
        }


def say_what_is_short(provenance: dict[str, Any]) -> None:
    """Say in a line each where there is less text than was asked for, or too little to tell much."""
    config = provenance["config"]
    for side, needed in (("train", config["max_tokens"]), ("held_out", config["held_out_tokens"])):
        n_tokens = provenance[side]["tokens"]
        if needed is not None and n_tokens < needed:
            say(f"the corpus has {n_tokens:,} {side.replace('_', '-')} tokens, fewer than the {needed:,} requested")
    n_documents = provenance["held_out"]["documents"]
    if n_documents < FEW_DOCUMENTS:
        say(
            f"the {provenance['held_out']['tokens']:,} held-out tokens come from {n_documents} "
            f"document{'' if n_documents == 1 else 's'}: scores say little about other text; have more or shorter documents, "
            "or raise held_out_tokens, held_out_fraction or pool"
        )


def _fill(train: _Side, held_out: _Side, config: CorpusConfig, reader: _Tokens) -> tuple[int, int]:
    """Read documents until both sides are full; return how many were read, and how many differ, up to a few."""
    wanted = None if train.wanted is None or held_out.wanted is None else train.wanted + held_out.wanted
    n_documents, different = 0, set[bytes]()
    with progress("tokenise", wanted, "tokens") as advance:
        for rows in _batches(read_rows(config)):
            if len(different) < FEW_DOCUMENTS:
                different.update(row.content for row in rows)
            sides = [held_out if _is_held_out(row.content, config) else train for row in rows]
            # A full side takes no more documents, so these are not tokenised either.
            first, n_documents = n_documents, n_documents + len(rows)
            taken = [(first + i, row) for i, row in enumerate(rows) if not sides[i].full]
            tokenised = reader.tokens([row for _, row in taken])
            for (doc_id, _), (tokens, turns) in zip(taken, tokenised, strict=True):
                side = sides[doc_id - first]
                before = side.n_pooled
                side.layout.add(doc_id, tokens, turns)
                advance(side.n_pooled - before)
            if train.full and held_out.full:
                break
    return n_documents, len(different)


class _Tokens:
    """Documents of every kind to their tokens, and to the turn of each token in a chat.

    A document that begins with the token that contexts start with loses it: the layout writes it at each context's start.
    """

    def __init__(
        self, config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase, bos_id: int | None
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._bos_id = bos_id
        self._known = False  # whose ids those of tokenised documents are

    def tokens(self, rows: Sequence[Row]) -> list[tuple[Sequence[int], np.ndarray | None]]:
        """The tokens of each document, and their turns, or None where it is no chat."""
        special = self._config.special_tokens
        of_text = iter(
            token_ids([row.document for row in rows if isinstance(row.document, str)], self._tokenizer, special)
        )
        tokenised: list[tuple[Sequence[int], np.ndarray | None]] = []
        for row in rows:
            match row.document:
                case TokenIds(ids):
                    if not self._known:
                        check_tokenised_by(self._config, self._tokenizer)
                        self._known = True
                    check_ids(row.document, len(self._tokenizer), row.where)
                    tokenised.append((ids[self._begins(ids) :], None))
                case Chat():
                    ids, turns = chat_tokens(row.document, self._tokenizer, special, row.where)
                    skipped = self._begins(ids)
                    tokenised.append((ids[skipped:], turns[skipped:]))
                case _:
                    tokenised.append((next(of_text), None))
        return tokenised

    def _begins(self, ids: Sequence[int]) -> int:
        """1 if the first token is the one that contexts start with, else 0."""
        return int(bool(ids) and ids[0] == self._bos_id)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row.document) if isinstance(row.document, str) else len(row.content)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_held_out(content: bytes, config: CorpusConfig) -> bool:
    return xxhash.xxh3_64_intdigest(content, seed=config.seed) / 2**64 < config.held_out_fraction


def _bos_and_padding(config: CorpusConfig, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int | None, int]:
    start, padding = start_and_padding(tokenizer)
    if config.bos and start is None:
        raise CorpusError("the tokenizer has neither a BOS nor an EOS token to start contexts with; set bos to false")
    return (start if config.bos else None), padding
