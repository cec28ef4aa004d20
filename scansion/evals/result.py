"""What an evaluation returns: typed, versioned, with intervals, provenance, and a status that is never left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from scansion.sae import SAE, SAEMetadata

Status = Literal["ok", "degenerate"]
SCHEMA_VERSION = 1
BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class Subject:
    """An SAE to be evaluated: its name in tables, the module (which takes unscaled activations), its provenance."""

    name: str
    sae: SAE
    metadata: SAEMetadata


class Estimate(BaseModel):
    """A figure and its 95% interval. Figures that are not finite are stored as None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None
    low: float | None
    high: float | None

    @field_validator("value", "low", "high", mode="before")
    @classmethod
    def _finite_or_none(cls, value: float | None) -> float | None:
        return finite(value)

    @classmethod
    def of_ratio(cls, numerators: np.ndarray, denominators: np.ndarray, seed: int) -> Estimate:
        """``sum(numerators) / sum(denominators)`` with a percentile bootstrap interval over independent units.

        Args:
            numerators, denominators: one entry a unit (a context, a test row), shape [n].
            seed: of the resampling.
        """
        counts = _bootstrap_counts(len(numerators), seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = (counts @ numerators) / (counts @ denominators)
            value = numerators.sum() / denominators.sum()
        low, high = np.percentile(samples, [2.5, 97.5]) if np.isfinite(samples).all() else (math.nan, math.nan)
        return cls(value=float(value), low=float(low), high=float(high))

    def __str__(self) -> str:
        if self.value is None:
            return "not finite"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _bootstrap_counts(n_units: int, seed: int) -> np.ndarray:
    """How often each unit is drawn in each bootstrap sample, shape [samples, n_units]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=BOOTSTRAP_SAMPLES).astype(np.float64)


class EvalResult(BaseModel):
    """Base of every evaluation's result.

    Attributes:
        eval: the evaluation's name.
        sae: the SAE's name.
        status: ``degenerate`` if the SAE has learnt nothing that could be measured; then no conclusion may be drawn.
        reasons: why it is degenerate, in plain words; empty if it is not.
        sae_metadata: where the SAE comes from.
        data: where the evaluation's data comes from, and the settings used.
        seed: of every random choice made in the evaluation.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    eval: str
    sae: str
    status: Status
    reasons: list[str]
    sae_metadata: SAEMetadata
    data: dict[str, Any]
    seed: int


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a finite number (JSON has no NaN)."""
    return float(value) if value is not None and math.isfinite(value) else None


def status_of(reasons: list[str]) -> Status:
    """``degenerate`` if there is any reason, else ``ok``."""
    return "degenerate" if reasons else "ok"
