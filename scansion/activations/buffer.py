"""What the buffer of a text holds, computed from the text and the settings alone, before any activation is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scansion.activations.stream import home_of
from scansion.errors import ConfigError, StoreError
from scansion.files import human_bytes

CHUNKS = 4
"""Chunks in a buffer: a chunk is replaced while the other three quarters stay."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """A window of successive chunks of contexts.

    Args:
        tokens: that it may hold, ``--buffer-tokens``.
        valid: which tokens of the text are no padding, in the order in which contexts are read.
    """

    tokens: int
    valid: Bool[Tensor, "C L"]

    @cached_property
    def edges(self) -> list[int]:
        """The first context of every chunk, and the number of contexts."""
        n_contexts, length = self.valid.shape
        wanted = max(1, self.tokens // (CHUNKS * length))
        n_chunks = math.ceil(n_contexts / wanted)
        return np.linspace(0, n_contexts, n_chunks + 1).round().astype(int).tolist()

    @property
    def n_chunks(self) -> int:
        """N, which is also the number of windows in an epoch."""
        return len(self.edges) - 1

    @property
    def n_held(self) -> int:
        """Chunks in the buffer."""
        return min(CHUNKS, self.n_chunks)

    @property
    def slot(self) -> int:
        """Contexts of the largest chunk."""
        return max(np.diff(self.edges).tolist())

    def positions(self, use_position_0: bool, out: Bool[Tensor, "C L"] | None = None) -> Int[Tensor, "P"]:
        """The positions that training uses: those at which the first chunk has a token that is not left out."""
        drawn = self.valid if out is None else self.valid & ~out
        positions = drawn[: self.edges[1]].any(dim=0).nonzero().squeeze(1)
        return positions if use_position_0 else positions[positions > 0]

    def steps_per_window(self, positions: Int[Tensor, "P"], per_position: int) -> int:
        """Batches that a window gives, of ``per_position`` tokens at each of the positions.

        Raises:
            ConfigError: not one.
        """
        n_steps = self._most_per_position(positions) // per_position
        if not n_steps:
            largest = self.largest_batch(positions)
            smaller = f"give --batch-tokens {largest:,} or less, or " if largest else ""
            raise ConfigError(
                f"a buffer of {self.tokens:,} tokens is too small for batches of {per_position * len(positions):,}: a quarter "
                f"of it is replaced at a time; {smaller}harvest into another folder with a larger --buffer-tokens"
            )
        return n_steps

    def largest_batch(self, positions: Int[Tensor, "P"]) -> int:
        """Tokens of the largest batch; 0 if the buffer is too small for any."""
        return self._most_per_position(positions) * len(positions)

    def _most_per_position(self, positions: Int[Tensor, "P"]) -> int:
        if not len(positions):
            return 0
        return int(self.valid[:, positions].sum()) // (self.n_chunks * len(positions))

    def check_positions(
        self, positions: Int[Tensor, "P"], n_windows: int, out: Bool[Tensor, "C L"] | None = None
    ) -> None:
        """Raise unless every position has a token in each of the first windows.

        Raises:
            StoreError: one has none.
        """
        drawn = self.valid if out is None else self.valid & ~out
        pairs = zip(self.edges, self.edges[1:], strict=False)
        counts = torch.stack([drawn[start:stop, positions].sum(dim=0) for start, stop in pairs])  # [N, P]
        # Of a chunk's tokens, the window in which it is number i of the buffer draws number i, i + n_held, ...
        chunks = torch.arange(min(n_windows, self.n_chunks))[:, None] + torch.arange(self.n_held)
        has_token = (counts[chunks % self.n_chunks] > torch.arange(self.n_held)[:, None]).any(dim=1)
        if not bool(has_token.all()):
            raise empty_position(int(positions[(~has_token).any(dim=0)][0]))

    def n_bytes(self, d_in: int, dtype: torch.dtype) -> int:
        """Bytes of its activations in memory."""
        return self.valid.shape[1] * self.n_held * self.slot * d_in * dtype.itemsize

    def home(self, d_in: int, dtype: torch.dtype, device: torch.device) -> torch.device:
        """Where its activations are kept in memory: on the device or in the CPU's memory.

        Raises:
            ConfigError: there is no room.
        """
        n_bytes = self.n_bytes(d_in, dtype)
        home = home_of(n_bytes, device, None)
        if home is None:
            raise ConfigError(
                f"a buffer of {human_bytes(n_bytes)} takes more than half of the free memory; harvest into another folder "
                "with a smaller --buffer-tokens"
            )
        return home


def empty_position(position: int) -> StoreError:
    """The error where a position has no token to draw in some window."""
    return StoreError(
        f"no token at position {position} is in the buffer at some time in training; harvest into another folder with a larger "
        "--buffer-tokens, shorter contexts, or --layout packed"
    )
