"""Selection: the active entries of a batch, from an encoder product computed a few tokens at a time into one buffer.

The buffer is overwritten by the next tokens: no tensor of [tokens, d_sae] is kept.
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
from scansion.execution.operations import Names, RowEntries
from scansion.execution.sparse_acts import SparseActs


@dataclass(frozen=True)
class _Chunk:
    """The pre-activations of a few tokens, from one block or from several blocks of equal width.

    Attributes:
        pre_acts: overwritten by the next chunk.
        names: the features of the columns, for the rows of each block.
    """

    pre_acts: Float[Tensor, "t w"]
    names: Names

    def largest(self, k: int) -> RowEntries:
        """The k largest positive entries of each token."""
        return operations.top_k(self.pre_acts, k, self.names)

    def above(self, floor: float, at_most: int | None) -> RowEntries | int:
        """All entries above ``floor``. If they are more than ``at_most``, it may return their number."""
        return operations.above(self.pre_acts, floor, self.names, at_most)


def _chunks(encoder: Encoder) -> Iterator[_Chunk]:
    """All tokens in as few chunks as the device holds at a time: whole positions; or one position, if that has more."""
    at_once = backends.entries_at_once(encoder.x.device)
    for width, alike in groupby(encoder.blocks, key=lambda block: block.width):
        step = max(1, at_once // (encoder.per_position * max(1, width)))
        waiting: list[Block] = []
        total, buffer = 0, encoder.x.new_empty(0, width)
        for block in (part for each in alike for part in each.split(step)):
            size = block.n_rows * encoder.per_position
            if waiting and (total + size) * width > at_once:
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
    for alike in encoder.runs(blocks):
        end = start + sum(block.n_rows for block in alike) * encoder.per_position
        encoder.write(alike, buffer[start:end])
        for block in alike:
            names.append(((names[-1][0] if names else 0) + block.n_rows * encoder.per_position, block.features))
        start = end
    return _Chunk(buffer[:start], names)


def select_top_k(encoder: Encoder, k: int) -> SparseActs:
    """The k largest positive entries of each token, or all of them where a token has fewer."""
    screened = screened_top_k(encoder, k, backends.CHUNK)
    return _entries(screened or [chunk.largest(k) for chunk in _chunks(encoder)], encoder)


def select_largest(encoder: Encoder, n_places: int, last_place: Float[Tensor, ""]) -> SparseActs:
    """The ``n_places`` largest positive entries of all tokens together, or all of them where there are fewer.

    Args:
        encoder: of all blocks.
        n_places: entries to keep; more where several tie for the last place.
        last_place: a guess at the smallest value kept, 0 or below if there is none. It changes the time this takes, never
            the result.
    """
    on_device = backends.choose("largest_of_all", None, encoder.x)
    if on_device is not None and 0 < encoder.n_entries <= backends.entries_at_once(encoder.x.device):
        # So few entries are one chunk for each width of block, with a buffer of its own.
        parts = on_device([(chunk.pre_acts, chunk.names) for chunk in _chunks(encoder)], n_places, last_place)
        return _entries([parts], encoder)
    return select_over_batch(encoder, n_places, max(0.0, backends.FLOOR * float(last_place)))


def select_over_batch(encoder: Encoder, n_places: int, floor: float) -> SparseActs:
    """As :func:`select_largest`, from the entries above ``floor``, 0 or more; from all if fewer than ``n_places`` are above."""
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
    """All positive entries; None if there are more than ``at_most``. If there are far more, a few tokens show it early."""
    if at_most == 0:
        return None
    few = encoder.first_tokens()
    if _above(few, 0.0)[1] / few.n_entries > backends.CLEARLY * at_most / encoder.n_entries:
        return None
    parts, count = _above(encoder, 0.0, at_most)
    return None if count > at_most else _entries(parts, encoder)


def _entries(parts: Sequence[RowEntries], encoder: Encoder) -> SparseActs:
    """The entries of all chunks, one after another."""
    features, values, counts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return SparseActs.from_row_counts(features, values, counts, len(encoder.W_enc))


def _above(encoder: Encoder, floor: float, at_most: int | None = None) -> tuple[list[RowEntries], int]:
    """All entries above ``floor`` and their number; if that exceeds ``at_most``, only a number that does."""
    parts: list[RowEntries] = []
    count = 0
    for chunk in _chunks(encoder):
        part = chunk.above(floor, None if at_most is None else at_most - count)
        count += part if isinstance(part, int) else len(part[1])
        if isinstance(part, int) or (at_most is not None and count > at_most):
            break
        parts.append(part)
    return parts, count
