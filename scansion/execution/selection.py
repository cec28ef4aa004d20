"""Selection: the active entries of a batch, from an encoder product made a few tokens at a time into one buffer.

What is not selected is forgotten at once: no tensor of [tokens, d_sae] is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.cpu import native
from scansion.execution.cpu.screening import Found, screened_above, screened_top_k
from scansion.execution.cpu.top_k import cells_above, largest_positive
from scansion.execution.encoder import Encoder
from scansion.execution.sparse_acts import SparseActs

# Entries of the encoder product that are held in memory at once.
CHUNK = 1 << 21

# Share of a batch's entries, at most, that may be active for sparse execution to be the faster one, from steps timed on both
# sides of it on a CPU: against the dense form, and against relu_forward.
DENSITY = 1 / 4
RELU_DENSITY = 1 / 6

# How many times the share of active entries that is allowed must be exceeded by a few tokens for all to be given up on.
CLEARLY = 1.5


@dataclass(frozen=True)
class _Chunk:
    """Some of the tokens, of one encoder or of several equally wide ones.

    Attributes:
        pre_acts: overwritten by the next chunk.
        parts: the encoders, and where the tokens of each end.
    """

    pre_acts: Float[Tensor, "t w"]
    parts: Sequence[tuple[Encoder, int]]

    @property
    def width(self) -> int:
        """Features that a token may use."""
        return self.pre_acts.shape[1]

    def largest(self, k: int) -> Found:
        """The k largest positive entries of each token: features and values, and how many each token has."""
        if native.supports(self.pre_acts):
            found = native.top_k(self.pre_acts, min(k, self.width), self._names())
            if found is not None:
                return found
        columns, values, counts = largest_positive(self.pre_acts, k)
        tokens = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(columns))
        return self.features_at(columns + tokens * self.width), values, counts

    def above(self, floor: float, at_most: int | None) -> Found | int:
        """All entries above ``floor``, likewise; perhaps only how many, if they are more than ``at_most``."""
        if native.supports(self.pre_acts):
            return native.above(self.pre_acts, floor, self._names(), at_most)
        cells = cells_above(self.pre_acts, floor)
        counts = torch.bincount(cells // self.width, minlength=len(self.pre_acts))
        return self.features_at(cells), self.pre_acts.view(-1)[cells], counts

    def _names(self) -> list[tuple[int, Int[Tensor, "w"] | None]]:
        return [(end, encoder.features) for encoder, end in self.parts]

    def features_at(self, cells: Int[Tensor, "nnz"]) -> Int[Tensor, "nnz"]:
        """The features of these cells of the flattened pre-activations."""
        places = cells % self.width
        named = [encoder.features for encoder, _ in self.parts if encoder.features is not None]
        if not named:
            return places
        if len(named) == 1:
            return named[0][places]
        ends = torch.tensor([end * self.width for _, end in self.parts], device=cells.device)
        return torch.stack(named)[torch.searchsorted(ends, cells, right=True), places]


def _chunks(encoders: Sequence[Encoder]) -> Iterator[_Chunk]:
    """All tokens, in as few chunks as hold them: whole positions, at most :data:`CHUNK` entries, or a single position."""
    for width, alike in groupby(encoders, key=lambda encoder: encoder.width):
        parts = [part for encoder in alike for part in _parts(encoder)]
        waiting: list[tuple[Encoder, slice]] = []
        total, buffer = 0, encoders[0].x.new_empty(0, width)
        for encoder, rows in parts:
            size = (rows.stop - rows.start) * encoder.x.shape[1]
            if waiting and (total + size) * width > CHUNK:
                buffer = buffer if len(buffer) >= total else buffer.new_empty(total, width)
                yield _written(waiting, buffer)
                waiting, total = [], 0
            waiting.append((encoder, rows))
            total += size
        yield _written(waiting, buffer if len(buffer) >= total else buffer.new_empty(total, width))


def _parts(encoder: Encoder) -> Iterator[tuple[Encoder, slice]]:
    """The positions of an encoder, as many at a time as a chunk may hold."""
    n_positions, n = encoder.x.shape[:2]
    step = max(1, CHUNK // (n * encoder.width))
    return ((encoder, slice(first, min(first + step, n_positions))) for first in range(0, n_positions, step))


def _written(parts: Sequence[tuple[Encoder, slice]], buffer: Tensor) -> _Chunk:
    ends: list[tuple[Encoder, int]] = []
    start = 0
    for encoder, rows in parts:
        end = start + (rows.stop - rows.start) * encoder.x.shape[1]
        encoder.at(rows).write(buffer[start:end])
        ends.append((encoder, end))
        start = end
    return _Chunk(buffer[:start], ends)


def most_active(encoders: Sequence[Encoder]) -> int:
    """The number of active entries of a batch up to which sparse execution is faster than the dense form."""
    return _share(encoders, DENSITY)


def most_active_relu(encoders: Sequence[Encoder]) -> int:
    """The number of active entries of a batch up to which sparse execution is faster than :func:`relu_forward`."""
    return _share(encoders, RELU_DENSITY)


def _share(encoders: Sequence[Encoder], share: float) -> int:
    return int(share * sum(encoder.n_tokens * encoder.width for encoder in encoders))


def select_top_k(encoders: Sequence[Encoder], k: int, d_sae: int) -> SparseActs:
    """The k largest positive entries of each token, or all of them where a token has fewer."""
    screened = screened_top_k(encoders, k, CHUNK)
    return _entries(screened or [chunk.largest(k) for chunk in _chunks(encoders)], d_sae)


def select_over_batch(encoders: Sequence[Encoder], n_places: int, floor: float, d_sae: int) -> SparseActs:
    """The ``n_places`` largest positive entries of all tokens together, or all of them where there are fewer.

    Args:
        encoders: of all bands.
        n_places: entries to keep; more where several tie for the last place.
        floor: a guess, 0 or above, at a value that at least so many entries exceed. It decides how long it takes, not
            what is found.
        d_sae: number of features.
    """
    k = n_places // sum(encoder.n_tokens for encoder in encoders)
    screened = screened_above(encoders, floor, k, CHUNK) if floor > 0 else None
    entries = _entries(screened or _above(encoders, floor)[0], d_sae)
    if len(entries.values) < n_places and floor > 0:
        entries = _entries(_above(encoders, 0.0)[0], d_sae)
    if len(entries.values) <= n_places:
        return entries
    kept = entries.values >= entries.values.kthvalue(len(entries.values) - n_places + 1).values
    before, places = torch.cat([entries.offsets.new_zeros(1), kept.cumsum(0)]), kept.nonzero().squeeze(1)
    return SparseActs(entries.features[places], entries.values[places], before[entries.offsets], d_sae)


def select_positive(encoders: Sequence[Encoder], at_most: int, d_sae: int) -> SparseActs | None:
    """All positive entries; None if there are more than ``at_most``, which a few tokens show beforehand if they are many."""
    if at_most == 0:
        return None
    few = [encoder.first_tokens() for encoder in encoders]
    share = _above(few, 0.0)[1] / sum(encoder.n_tokens * encoder.width for encoder in few)
    if share > CLEARLY * at_most / sum(encoder.n_tokens * encoder.width for encoder in encoders):
        return None
    found, count = _above(encoders, 0.0, at_most)
    return None if count > at_most else _entries(found, d_sae)


def _entries(found: Sequence[Found], d_sae: int) -> SparseActs:
    """Those of all chunks, one after another."""
    features, values, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SparseActs.from_row_counts(features, values, counts, d_sae)


def _above(encoders: Sequence[Encoder], floor: float, at_most: int | None = None) -> tuple[list[Found], int]:
    """All entries above ``floor``, and how many they are, or, if more than ``at_most``, some number that is more."""
    found: list[Found] = []
    count = 0
    for chunk in _chunks(encoders):
        some = chunk.above(floor, None if at_most is None else at_most - count)
        count += some if isinstance(some, int) else len(some[1])
        if isinstance(some, int) or (at_most is not None and count > at_most):
            break
        found.append(some)
    return found, count
