"""The settings of a synthetic world: which features exist, where and how often they fire, how they become activations."""

from __future__ import annotations

from typing import Literal

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

Range = tuple[int, int]


class ProfileMix(BaseModel):
    """The share of each kind among the position-bound features; shares are relative and need not sum to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    band: float = Field(default=0.5, ge=0, description="One stretch of neighbouring positions.")
    single: float = Field(default=0.25, ge=0, description="One position.")
    periodic: float = Field(default=0.25, ge=0, description="Every n-th position.")

    @model_validator(mode="after")
    def _check_not_empty(self) -> ProfileMix:
        if self.band + self.single + self.periodic == 0:
            raise ValueError("every share is 0; give at least one kind of profile a share above 0")
        return self


class SynthConfig(BaseModel):
    """A world of planted features. The same settings give the same features and the same activations, bit for bit.

    A token's activation is ``sum_i fires_i * amplitude_i * direction_i + noise``, over ``n_features`` true features.

    The defaults pack 256 features into 48 dimensions, 6 at a time: hard enough that a plain SAE of the same size misses
    some, and small enough that one trains in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    d_in: int = Field(default=48, ge=2, description="Width of the activations.")
    n_features: int = Field(default=256, ge=1, description="True features in the planted dictionary.")
    context_length: int = Field(default=32, ge=2, description="Positions in a context.")
    n_contexts: int = Field(default=8192, ge=1, description="Training contexts.")
    n_held_out_contexts: int = Field(default=2048, ge=1, description="Contexts that only evaluations see.")
    bound: float = Field(default=0.5, ge=0, le=1, description="Share of the true features that are position-bound.")
    mix: ProfileMix = ProfileMix()
    band_width: Range = Field(default=(2, 16), description="Narrowest and widest band, in positions.")
    period: Range = Field(default=(2, 8), description="Shortest and longest period, in positions.")
    mean_l0: float = Field(default=6.0, gt=0, description="Mean number of true features active per token.")
    zipf_exponent: float = Field(
        default=0.5, ge=0, description="Firing rates fall as rank ** -this; 0 = all features are equally frequent."
    )
    max_probability: float = Field(
        default=0.5, gt=0, le=1, description="No feature fires more often than this at any position."
    )
    amplitude_mean: float = Field(default=1.0, gt=0, description="Mean strength of a feature that fires.")
    amplitude_spread: float = Field(
        default=0.3, ge=0, description="Standard deviation of the strength over its mean (log-normal)."
    )
    noise: float = Field(
        default=0.1, ge=0, description="Norm of the white noise over that of the signal (root mean squares)."
    )
    correlation: float = Field(
        default=0.2, ge=0, lt=1, description="Correlation of the hidden Gaussians of features in one group."
    )
    group_size: int = Field(default=8, ge=1, description="Features in a group that tends to fire together.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="Stored type.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the features and of the data.")

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose, seeded by ``seed`` and the purpose.

        The seed alone is not enough: an SAE's initial weights are the first normal draws of a generator with the
        training seed, and the planted directions would be too. With equal seeds the SAE would start at the solution.
        """
        return torch.Generator().manual_seed(xxhash.xxh64_intdigest(f"{self.seed}/{purpose}".encode()) >> 1)

    @model_validator(mode="after")
    def _check_ranges(self) -> SynthConfig:
        for name, lowest in (("band_width", 1), ("period", 2)):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= self.context_length:
                raise ValueError(
                    f"{name} is ({low}, {high}); it should be two numbers in ascending order, from {lowest} to the "
                    f"{self.context_length} positions of a context"
                )
        return self
