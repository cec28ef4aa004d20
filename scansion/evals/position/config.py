"""Settings of the position evaluation."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.reading.training import CountsPositions


class PositionConfig(CountsPositions):
    """How much text is read, and how many draws stand behind each null and control."""

    evaluation: ClassVar[str] = "position"

    n_contexts: int | None = Field(default=None, ge=2, description="Held-out contexts to read; default all.")
    first_position: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,  # so that results from before this setting keep their identity
        description="Skip positions before this one, counted from 0; default none beyond what use_position_0 says.",
    )
    batch_contexts: int = Field(
        default=16,
        ge=8,
        multiple_of=8,
        description="Contexts per batch; a multiple of 8, because firings are stored as bits.",
    )
    groups: int = Field(
        default=10,
        ge=4,
        multiple_of=2,
        description="Groups of documents; intervals come from leaving out one group at a time (jackknife).",
    )
    null_draws: int = Field(
        default=100,
        ge=20,
        description="Random circular shifts for each feature's null mean, and random signs for its p-value.",
    )
    max_null_draws: int = Field(
        default=20_000, ge=20, description="Most draws of signs for a feature whose p-value needs more of them."
    )
    false_discovery_rate: float = Field(
        default=0.05, gt=0, lt=1, description="Accepted share of false positives among the features called significant."
    )
    mask_draws: int = Field(default=2, ge=1, description="Permuted masks to average over, as the control for the mask.")
    replaced_contexts: int = Field(
        default=64,
        ge=0,
        description="Contexts to run through the LM again behind other text: do features follow position or text? 0 = none.",
    )
    offset: int | None = Field(
        default=None, ge=1, description="Tokens to move those contexts by; default a quarter of the context."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Contexts per batch of the LM.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed for every random draw.")

    def counted_tokens(self, store: ActivationStore) -> tuple[Int[Tensor, "P"], Bool[Tensor, "P C"]]:
        """As :meth:`CountsPositions.counted_tokens`, from ``first_position`` on.

        Raises:
            EvalError: fewer than two positions are left.
        """
        positions, counted = super().counted_tokens(store)
        if self.first_position is None:
            return positions, counted
        kept = positions >= self.first_position
        if kept.sum() < 2:
            raise EvalError(
                f"position: first_position is {self.first_position}, but the last position with tokens is "
                f"{int(positions[-1])}; at least two positions must be left"
            )
        return positions[kept], counted[kept]
