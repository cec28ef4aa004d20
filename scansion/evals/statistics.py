"""Figures with their uncertainty: intervals over units and seeds, paired tests, and what differences could be detected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator
from scipy.optimize import root_scalar
from scipy.special import stdtr
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

BOOTSTRAP_SAMPLES = 1000


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

    @classmethod
    def of_mean(cls, values: Sequence[float], seed: int) -> Estimate | None:
        """The mean of independent units with a bootstrap interval; None where there are none. Arguments as above."""
        return cls.of_ratio(np.array(values), np.ones(len(values)), seed) if values else None

    @classmethod
    def of_seeds(cls, values: Sequence[float]) -> Estimate:
        """Mean over independent seeds with the 95% interval of Student's t: ``mean +- t(n - 1) * s / sqrt(n)``.

        ``s`` has n - 1 in its denominator. One seed gives no interval, none gives no figure. The interval assumes that
        seeds scatter normally; from 3 seeds it is 2.5 standard deviations wide on either side, from 5 seeds 1.2.
        """
        n = len(values)
        mean = float(np.mean(values)) if n else math.nan
        if n < 2:
            return cls(value=mean, low=None, high=None)
        half = float(_t_bound(n) * np.std(values, ddof=1) / math.sqrt(n))
        return cls(value=mean, low=mean - half, high=mean + half)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float | None:
        """The smallest true difference whose interval would lie clear of 0 with a probability of 80%; None without one.

        Of an estimated difference: (1.96 + 0.84) standard errors, of which its interval is 2 x 1.96 wide.
        """
        if self.low is None or self.high is None:
            return None
        return float((norm.ppf(0.975) + norm.ppf(0.8)) * (self.high - self.low) / (2 * norm.ppf(0.975)))

    def __str__(self) -> str:
        if self.value is None:
            return "not finite"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def detectable_difference(differences: Sequence[float]) -> float | None:
    """The smallest true difference that a two-sided 5% t-test on so many seeds would find with a probability of 80%.

    The noncentrality at which the test has that power, times ``s / sqrt(n)``, s the standard deviation of the
    differences; None below 2 seeds.

    Args:
        differences: paired by seed.
    """
    n = len(differences)
    return float(_noncentrality(n) * np.std(differences, ddof=1) / math.sqrt(n)) if n > 1 else None


@cache
def _t_bound(n: int) -> float:
    """The 97.5% quantile of Student's t for n values, which scipy takes long to look up."""
    return float(student_t.ppf(0.975, n - 1))


@cache
def _noncentrality(n: int) -> float:
    """Of a t-test on n differences that finds them with a probability of 80%."""
    bound = _t_bound(n)
    # The mean over what the sample's standard deviation may be, by quadrature: scipy's noncentral t fails for 2 seeds.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    spread = np.sqrt(chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))

    def lacking(mean: float) -> float:
        return float(weights / 2 @ (norm.cdf(mean - bound * spread) + norm.cdf(-mean - bound * spread))) - 0.8

    return float(root_scalar(lacking, bracket=(0.0, 10 * bound)).root)


def paired_p(differences: Sequence[float]) -> float | None:
    """The p-value of a two-sided one-sample t-test that the mean is zero; None below 2 seeds, or where all are equal.

    Args:
        differences: paired by seed.
    """
    n = len(differences)
    deviation = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    if deviation == 0.0:
        return None
    # The lower tail of t, as scipy's own sf(), whose checks of arguments take ten times as long.
    return float(2 * stdtr(n - 1, -abs(float(np.mean(differences))) * math.sqrt(n) / deviation))


def _bootstrap_counts(n_units: int, seed: int) -> np.ndarray:
    """How often each unit is drawn in each bootstrap sample, shape [samples, n_units]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=BOOTSTRAP_SAMPLES).astype(np.float64)


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a finite number (JSON has no NaN)."""
    return float(value) if value is not None and math.isfinite(value) else None
