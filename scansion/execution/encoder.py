"""The dense part of a sparse step: which tokens meet which features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Encoder:
    """Tokens, and the features that they may use: those of one band, or, without bands, all.

    Attributes:
        x: the tokens, less their decoder bias, grouped by position.
        W_enc: of all features; a feature's weights lie together in memory.
        b_enc: of all features.
        pieces: the w features, as ascending ranges of d_sae.
        closed: True where the mask keeps a feature from firing; None if it does so nowhere.
    """

    x: Float[Tensor, "p n d_in"]
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, "d_sae"]
    pieces: Sequence[slice]
    closed: Bool[Tensor, "p w"] | None

    @property
    def n_tokens(self) -> int:
        """Tokens, p x n."""
        return self.x.shape[0] * self.x.shape[1]

    @cached_property
    def width(self) -> int:
        """Features that a token may use."""
        return sum(len(self.b_enc[piece]) for piece in self.pieces)

    @cached_property
    def features(self) -> Int[Tensor, "w"] | None:
        """Indices of the features; None for all, in order."""
        if self.width == len(self.b_enc):
            return None
        ranges = (torch.arange(*piece.indices(len(self.b_enc)), device=self.x.device) for piece in self.pieces)
        return torch.cat(list(ranges))

    def at(self, rows: slice) -> Encoder:
        """The tokens at these positions, with the same features."""
        return replace(self, x=self.x[rows], closed=None if self.closed is None else self.closed[rows])

    def first_tokens(self) -> Encoder:
        """The first token at each position, with the same features."""
        return replace(self, x=self.x[:, :1])

    def write(self, out: Float[Tensor, "t w"]) -> None:
        """Write the pre-activations of all tokens; masked features are minus infinity."""
        x = self.x.flatten(0, 1)
        for piece, columns in self._columns(out):
            torch.addmm(self.b_enc[piece], x, self.W_enc[piece].T, out=columns)
        self._close(out)

    def multiply(
        self, x: Shaped[Tensor, "t d_in"], W_enc: Shaped[Tensor, "d_sae d_in"], out: Shaped[Tensor, "t w"]
    ) -> None:
        """Write the product of the same tokens and weights in another type; masked features are minus infinity."""
        for piece, columns in self._columns(out):
            torch.mm(x, W_enc[piece].T, out=columns)
        self._close(out)

    def _columns(self, out: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Each piece, and its columns of the product."""
        sizes = [len(self.b_enc[piece]) for piece in self.pieces]
        return zip(self.pieces, out.split(sizes, dim=1), strict=True)

    def _close(self, out: Tensor) -> None:
        if self.closed is not None:
            out.view(-1, self.x.shape[1], self.width).masked_fill_(self.closed[:, None], -torch.inf)
