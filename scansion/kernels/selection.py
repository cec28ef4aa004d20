"""Selection: the active entries of a batch, from an encoder product made a few tokens at a time into one buffer.

What is not selected is forgotten at once: no tensor of [tokens, d_sae] is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.kernels.sparse import Entries
from scansion.kernels.top_k import cells_above, largest_positive

# Entries of the encoder product that are held at once.
CHUNK = 1 << 21

# Share of a batch's entries, at most, that may be active for sparse execution to be the faster one, from steps timed on both
# sides of it on a CPU: against the dense form, and against relu_forward.
DENSITY = 1 / 4
RELU_DENSITY = 1 / 6

# How many times the share of active entries that is allowed must be exceeded by a few tokens for all to be given up on.
CLEARLY = 1.5


@dataclass(frozen=True)
class Encoder:
    """Tokens, and the features that they may use: those of one band, or, without bands, all.

    Attributes:
        x: the tokens, less their decoder bias, grouped by position.
        W_enc: one row a feature, in pieces that lie together in memory.
        b_enc: of the same pieces.
        features: indices of the w features; None for all, in order.
        closed: True where the mask keeps a feature from firing; None if it does so nowhere.
    """

    x: Float[Tensor, "p n d_in"]
    W_enc: Sequence[Float[Tensor, "_ d_in"]]
    b_enc: Sequence[Float[Tensor, "_"]]
    features: Int[Tensor, "w"] | None
    closed: Bool[Tensor, "p w"] | None

    @property
    def n_tokens(self) -> int:
        """Tokens, p x n."""
        return self.x.shape[0] * self.x.shape[1]

    @property
    def width(self) -> int:
        """Features that a token may use."""
        return sum(len(W) for W in self.W_enc)

    def first_tokens(self) -> Encoder:
        """The first token at each position, with the same features."""
        return replace(self, x=self.x[:, :1])

    def chunks(self) -> Iterator[Float[Tensor, "t w"]]:
        """Pre-activations of all tokens, a few whole positions at a time; masked features are minus infinity.

        Each chunk is overwritten by the next.
        """
        n_positions, n = self.x.shape[:2]
        step = max(1, CHUNK // (n * self.width))
        buffer = self.x.new_empty(min(step, n_positions) * n, self.width)
        for first in range(0, n_positions, step):
            x = self.x[first : first + step].flatten(0, 1)
            pre_acts, start = buffer[: len(x)], 0
            for W, b in zip(self.W_enc, self.b_enc, strict=True):
                torch.addmm(b, x, W.T, out=pre_acts[:, start : start + len(W)])
                start += len(W)
            if self.closed is not None:
                pre_acts.view(-1, n, self.width).masked_fill_(self.closed[first : first + step, None], -torch.inf)
            yield pre_acts

    def named(self, places: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest"]:
        """The features at these places of the product."""
        return places if self.features is None else self.features[places]


def most_active(encoders: Sequence[Encoder]) -> int:
    """The number of active entries of a batch up to which sparse execution is faster than the dense form."""
    return _share(encoders, DENSITY)


def most_active_relu(encoders: Sequence[Encoder]) -> int:
    """The number of active entries of a batch up to which sparse execution is faster than :func:`relu_forward`."""
    return _share(encoders, RELU_DENSITY)


def _share(encoders: Sequence[Encoder], share: float) -> int:
    return int(share * sum(encoder.n_tokens * encoder.width for encoder in encoders))


def select_top_k(encoders: Sequence[Encoder], k: int, d_sae: int) -> Entries:
    """The k largest positive entries of each token, or all of them where a token has fewer."""
    found = _Found()
    for encoder in encoders:
        for pre_acts in encoder.chunks():
            cells, values, counts = largest_positive(pre_acts, k)
            found.add(values, encoder.named(cells % encoder.width), counts)
    return found.entries(d_sae)


def select_over_batch(encoders: Sequence[Encoder], n_places: int, floor: float, d_sae: int) -> Entries:
    """The ``n_places`` largest positive entries of all tokens together, or all of them where there are fewer.

    Args:
        encoders: of all bands.
        n_places: entries to keep; more where several tie for the last place.
        floor: a guess, 0 or above, at a value that at least so many entries exceed. It decides how long it takes, not
            what is found.
        d_sae: number of features.
    """
    entries = _above(encoders, floor).entries(d_sae)
    if len(entries.values) < n_places and floor > 0:
        entries = _above(encoders, 0.0).entries(d_sae)
    if len(entries.values) <= n_places:
        return entries
    kept = entries.values >= entries.values.topk(n_places, sorted=False).values.min()
    before = torch.cat([entries.offsets.new_zeros(1), kept.cumsum(0)])
    return Entries(entries.features[kept], entries.values[kept], before[entries.offsets], d_sae)


def select_positive(encoders: Sequence[Encoder], at_most: int, d_sae: int) -> Entries | None:
    """All positive entries; None if there are more than ``at_most``, which a few tokens show beforehand if they are many."""
    if at_most == 0:
        return None
    few = [encoder.first_tokens() for encoder in encoders]
    share = _above(few, 0.0).count / sum(encoder.n_tokens * encoder.width for encoder in few)
    if share > CLEARLY * at_most / sum(encoder.n_tokens * encoder.width for encoder in encoders):
        return None
    found = _above(encoders, 0.0, at_most)
    return None if found.count > at_most else found.entries(d_sae)


class _Found:
    """Entries, as one chunk after another gives them."""

    def __init__(self) -> None:
        self.count = 0
        self._values: list[Tensor] = []
        self._features: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, values: Tensor, features: Tensor, counts: Tensor) -> None:
        """Those of one chunk, token by token, and how many each token has."""
        self.count += len(values)
        self._values.append(values)
        self._features.append(features)
        self._counts.append(counts)

    def entries(self, d_sae: int) -> Entries:
        ends = torch.cat(self._counts).cumsum(0)
        return Entries(torch.cat(self._features), torch.cat(self._values), torch.cat([ends.new_zeros(1), ends]), d_sae)


def _above(encoders: Sequence[Encoder], floor: float, at_most: int | None = None) -> _Found:
    """All entries above ``floor``, or, if they are more than ``at_most``, some that are more."""
    found = _Found()
    for encoder in encoders:
        for pre_acts in encoder.chunks():
            cells = cells_above(pre_acts, floor)
            counts = torch.bincount(cells // encoder.width, minlength=len(pre_acts))
            found.add(pre_acts.view(-1)[cells], encoder.named(cells % encoder.width), counts)
            if at_most is not None and found.count > at_most:
                return found
    return found
