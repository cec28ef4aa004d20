"""A batch of activations that keep their position: stores and streams return it, and an SAE encodes it."""

from __future__ import annotations

from collections.abc import Callable
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
        previous: the tokens before those of a batch whose columns are not contexts, as those of a stream: ``previous[b - 1]``
            are the tokens b positions earlier, [P - b, n, d_in], for all rows but the first b. As many as the stream was built
            with. None if each column is one context, so that the tokens before are in the batch.
    """

    x: Float[Tensor, "P n d_in"]
    positions: Int[Tensor, "P"]
    previous: tuple[Float[Tensor, "_ n d_in"], ...] | None = None

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
        """The rows of these positions, in the order given; of ``previous`` nothing is kept.

        Raises:
            ShapeError: the batch has no row for one of them.
        """
        rows = torch.searchsorted(self.positions, positions.to(self.positions.device))
        if not torch.equal(
            self.positions[rows.clamp(max=len(self.positions) - 1)], positions.to(self.positions.device)
        ):
            raise ShapeError(f"the batch has positions {self.positions.tolist()}, not all of {positions.tolist()}")
        return PositionedBatch(self.x[rows], self.positions[rows], None if self.previous is None else ())

    def float(self) -> PositionedBatch:
        """The same batch in float32."""
        return self._mapped(Tensor.float, self.positions)

    def to(self, device: torch.device) -> PositionedBatch:
        """The same batch on another device."""
        return self._mapped(lambda x: x.to(device), self.positions.to(device))

    def scaled(self, scale: float) -> PositionedBatch:
        """The same batch with activations multiplied by ``scale``."""
        return self._mapped(lambda x: x * scale, self.positions)

    def _mapped(self, function: Callable[[Tensor], Tensor], positions: Tensor) -> PositionedBatch:
        previous = None if self.previous is None else tuple(map(function, self.previous))
        return PositionedBatch(function(self.x), positions, previous)
