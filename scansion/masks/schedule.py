"""Schedules of a learnt mask: its temperature, the steps that may move it, and its learning rate."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Temperature(BaseModel):
    """Strictness of a learnt mask, from 0 (hard: each weight is 0 or 1) up; constant, or moving from start to end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: float = Field(default=1.0, ge=0, description="Temperature at the first step.")
    end: float | None = Field(default=None, ge=0, description="Temperature at the last step; default the start's.")
    shape: Literal["linear", "geometric"] = Field(
        default="linear", description="How the temperature goes from start to end."
    )
    until: float = Field(
        default=1.0, gt=0, le=1, description="Share of the run after which the temperature stays at end."
    )

    @model_validator(mode="after")
    def _geometric_has_no_zero(self) -> Temperature:
        if self.shape == "geometric" and self.end is not None and min(self.start, self.end) == 0:
            raise ValueError("a geometric schedule cannot start or end at 0; use a small number or a linear one")
        return self

    def at(self, step: int, n_steps: int) -> float:
        """The temperature of ``step``, from 0."""
        if self.end is None:
            return self.start
        progress = min(1.0, (step + 1) / max(1.0, self.until * n_steps))
        if self.shape == "geometric":
            return self.start * (self.end / self.start) ** progress
        return self.start + progress * (self.end - self.start)


class MaskUpdates(BaseModel):
    """Which training steps may move a learnt mask, and how far."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: int = Field(default=0, ge=0, description="First training step that changes the mask.")
    stop: int | None = Field(
        default=None, ge=0, description="Training step from which the mask is frozen; null = never."
    )
    every: int | None = Field(
        default=1, ge=1, description="Change the mask at every such number of steps; null = never."
    )
    lr_multiplier: float = Field(
        default=30.0, ge=0, description="Learning rate of the mask, as a multiple of the SAE's."
    )

    def at(self, step: int) -> bool:
        """Whether ``step`` may move the mask."""
        if self.every is None or step < self.start or (self.stop is not None and step >= self.stop):
            return False
        return (step - self.start) % self.every == 0
