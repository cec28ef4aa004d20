"""A batch of activations that keep their position: stores and streams return it, and an SAE encodes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.errors import ShapeError


@dataclass(frozen=True)
class PositionedBatch:
    """Activations grouped by position: row ``x[i]`` holds n tokens, all of them at ``positions[i]`` of their context.

    Example:
        >>> batch = store.contexts(0, 16)  # x: [L, 16, d_in]
        >>> acts = sae.encode(batch)  # [L, 16, d_sae]: the SAE reads the positions off the batch

    Attributes:
        x: activations.
        positions: ascending, in [0, L).
        previous: the activation one position earlier, for all rows but the first; None unless the stream was built with it.
    """

    x: Float[Tensor, "P n d_in"]
    positions: Int[Tensor, "P"]
    previous: Float[Tensor, "P_less_1 n d_in"] | None = None

    def __repr__(self) -> str:
        """Sizes, not numbers."""
        P, n, d_in = self.x.shape
        kind = str(self.x.dtype).removeprefix("torch.")
        where = f"{int(self.positions.min())} to {int(self.positions.max())}" if P else "none"
        return f"PositionedBatch({P} positions ({where}) x {n} tokens x {d_in}, {kind} on {self.x.device})"

    @property
    def n_tokens(self) -> int:
        """Tokens in the batch, P x n."""
        return self.x.shape[0] * self.x.shape[1]

    @property
    def token_positions(self) -> Int[Tensor, "P 1"]:
        """The positions in a shape that broadcasts against the tokens [P, n]."""
        return self.positions[:, None]

    @cached_property
    def variance(self) -> Float[Tensor, ""]:
        """Mean squared distance of a token from the mean of all tokens; cached because several SAEs may read the batch."""
        flat = self.x.flatten(0, 1)
        return torch.linalg.vector_norm(flat - flat.mean(dim=0), dim=1).square().mean()

    def at(self, positions: Int[Tensor, "R"]) -> PositionedBatch:
        """The rows of these positions, in the order given; ``previous`` is dropped.

        Raises:
            ShapeError: the batch has no row for one of them.
        """
        rows = torch.searchsorted(self.positions, positions.to(self.positions.device))
        if not torch.equal(
            self.positions[rows.clamp(max=len(self.positions) - 1)], positions.to(self.positions.device)
        ):
            raise ShapeError(f"the batch has positions {self.positions.tolist()}, not all of {positions.tolist()}")
        return PositionedBatch(self.x[rows], self.positions[rows])

    def float(self) -> PositionedBatch:
        """The same batch in float32."""
        return PositionedBatch(self.x.float(), self.positions, None if self.previous is None else self.previous.float())

    def to(self, device: torch.device) -> PositionedBatch:
        """The same batch on another device."""
        previous = None if self.previous is None else self.previous.to(device)
        return PositionedBatch(self.x.to(device), self.positions.to(device), previous)

    def scaled(self, scale: float) -> PositionedBatch:
        """The same batch with activations multiplied by ``scale``."""
        return PositionedBatch(self.x * scale, self.positions, None if self.previous is None else self.previous * scale)
