"""Settings of the position evaluation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from scansion.evals.settings import CountsPositions


class PositionConfig(CountsPositions):
    """How much text is read, and how many draws stand behind each null and control."""

    evaluation: ClassVar[str] = "position"

    n_contexts: int | None = Field(default=None, ge=2, description="Held-out contexts to read; default all.")
    batch_contexts: int = Field(default=16, ge=8, multiple_of=8, description="Contexts encoded at once; 8 a byte.")
    groups: int = Field(
        default=10, ge=4, multiple_of=2, description="Groups of documents that intervals and halves are made from."
    )
    null_draws: int = Field(default=100, ge=20, description="Circular shifts behind each feature's null.")
    max_null_draws: int = Field(
        default=20_000, ge=20, description="Most shifts for a feature whose p-value the first ones cannot resolve."
    )
    false_discovery_rate: float = Field(default=0.05, gt=0, lt=1, description="Of the features called significant.")
    mask_draws: int = Field(default=2, ge=1, description="Permuted masks of the same shape.")
    replaced_contexts: int = Field(
        default=64, ge=0, description="Contexts read again at another offset through the LM; 0 = none."
    )
    offset: int | None = Field(
        default=None, ge=1, description="By how many tokens they are moved; default a quarter of the context."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Contexts the LM reads at once.")
    seed: int = Field(default=0, description="Seed of every draw.")
