"""Selection: the active entries of a batch, from an encoder product made a few tokens at a time into one buffer.

What is not selected is forgotten at once: no tensor of [tokens, d_sae] is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from scansion.execution import backends, operations
from scansion.execution.blocks import Block
from scansion.execution.cpu.screening import screened_above, screened_top_k
from scansion.execution.encoder import Encoder
from scansion.execution.operations import Found, Names
from scansion.execution.sparse_acts import SparseActs


@dataclass(frozen=True)
class _Chunk:
    """The pre-activations of some tokens, of one block or of several equally wide ones.

    Attributes:
        pre_acts: overwritten by the next chunk.
        names: the features of the columns, for the rows of each block.
    """

    pre_acts: Float[Tensor, "t w"]
    names: Names

    def largest(self, k: int) -> Found:
        """The k largest positive entries of each token."""
        return operations.top_k(self.pre_acts, k, self.names)

    def above(self, floor: float, at_most: int | None) -> Found | int:
        """All entries above ``floor``; perhaps only how many, if they are more than ``at_most``."""
        return operations.above(self.pre_acts, floor, self.names, at_most)


def _chunks(encoder: Encoder) -> Iterator[_Chunk]:
    """All tokens, in as few chunks as hold them: whole positions, at most CHUNK entries, or a single position."""
    for width, alike in groupby(encoder.blocks, key=lambda block: block.width):
        step = max(1, backends.CHUNK // (encoder.per_position * max(1, width)))
        waiting: list[Block] = []
        total, buffer = 0, encoder.x.new_empty(0, width)
        for block in (part for each in alike for part in each.split(step)):
            size = block.n_rows * encoder.per_position
            if waiting and (total + size) * width > backends.CHUNK:
                buffer = buffer if len(buffer) >= total else buffer.new_empty(total, width)
                yield _written(encoder, waiting, buffer)
                waiting, total = [], 0
            waiting.append(block)
            total += size
        if waiting:
            yield _written(encoder, waiting, buffer if len(buffer) >= total else buffer.new_empty(total, width))


def _written(encoder: Encoder, blocks: Sequence[Block], buffer: Tensor) -> _Chunk:
    names: list[tuple[int, Tensor | None]] = []
    start = 0
    for block in blocks:
        end = start + block.n_rows * encoder.per_position
        encoder.write(block, buffer[start:end])
        names.append((end, block.features))
        start = end
    return _Chunk(buffer[:start], names)


def select_top_k(encoder: Encoder, k: int) -> SparseActs:
    """The k largest positive entries of each token, or all of them where a token has fewer."""
    screened = screened_top_k(encoder, k, backends.CHUNK)
    return _entries(screened or [chunk.largest(k) for chunk in _chunks(encoder)], encoder)


def select_over_batch(encoder: Encoder, n_places: int, floor: float) -> SparseActs:
    """The ``n_places`` largest positive entries of all tokens together, or all of them where there are fewer.

    Args:
        encoder: of all blocks.
        n_places: entries to keep; more where several tie for the last place.
        floor: a guess, 0 or above, at a value that at least so many entries exceed. It decides how long it takes, not
            what is found.
    """
    k = n_places // encoder.n_tokens
    screened = screened_above(encoder, floor, k, backends.CHUNK) if floor > 0 else None
    entries = _entries(screened or _above(encoder, floor)[0], encoder)
    if len(entries.values) < n_places and floor > 0:
        entries = _entries(_above(encoder, 0.0)[0], encoder)
    if len(entries.values) <= n_places:
        return entries
    kept = entries.values >= entries.values.kthvalue(len(entries.values) - n_places + 1).values
    before, places = torch.cat([entries.offsets.new_zeros(1), kept.cumsum(0)]), kept.nonzero().squeeze(1)
    return SparseActs(entries.features[places], entries.values[places], before[entries.offsets], entries.d_sae)


def select_positive(encoder: Encoder, at_most: int) -> SparseActs | None:
    """All positive entries; None if there are more than ``at_most``, which a few tokens show beforehand if they are many."""
    if at_most == 0:
        return None
    few = encoder.first_tokens()
    if _above(few, 0.0)[1] / few.n_entries > backends.CLEARLY * at_most / encoder.n_entries:
        return None
    found, count = _above(encoder, 0.0, at_most)
    return None if count > at_most else _entries(found, encoder)


def _entries(found: Sequence[Found], encoder: Encoder) -> SparseActs:
    """Those of all chunks, one after another."""
    features, values, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SparseActs.from_row_counts(features, values, counts, len(encoder.W_enc))


def _above(encoder: Encoder, floor: float, at_most: int | None = None) -> tuple[list[Found], int]:
    """All entries above ``floor``, and how many they are, or, if more than ``at_most``, some number that is more."""
    found: list[Found] = []
    count = 0
    for chunk in _chunks(encoder):
        some = chunk.above(floor, None if at_most is None else at_most - count)
        count += some if isinstance(some, int) else len(some[1])
        if isinstance(some, int) or (at_most is not None and count > at_most):
            break
        found.append(some)
    return found, count
