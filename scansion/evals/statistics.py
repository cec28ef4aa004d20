"""Figures with their uncertainty: intervals over units and seeds, paired tests, and what differences could be detected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator
from scipy.optimize import root_scalar
from scipy.special import stdtr
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

BOOTSTRAP_SAMPLES = 1000
TEXT_GROUPS = 20
"""Groups of documents or test texts that a figure is kept by, at most: enough that their variance has 19 degrees of freedom."""


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


class TextGroups(BaseModel):
    """One figure of one SAE by groups of the text it was measured on, so that its variance over texts is known.

    Either ``sum(numerators) / sum(denominators)`` is the figure, one entry per group; or ``without`` is the figure without
    each group in turn (the jackknife's), for a figure that is no ratio of sums. Numbers are rounded to 10 digits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    numerators: tuple[float, ...] = ()
    denominators: tuple[float, ...] = ()
    without: tuple[float, ...] = ()

    @classmethod
    def of_ratio(cls, numerators: np.ndarray, denominators: np.ndarray) -> TextGroups | None:
        """A ratio of sums over groups; None where one is not finite or a group holds all there is."""
        found = cls(numerators=_rounded(numerators), denominators=_rounded(denominators))
        with np.errstate(invalid="ignore", divide="ignore"):
            return found if np.isfinite(found.leaving_out()).all() else None

    @classmethod
    def of_jackknife(cls, without: np.ndarray) -> TextGroups | None:
        """A figure known without each group; None where one is not finite."""
        return cls(without=_rounded(without)) if np.isfinite(without).all() else None

    def leaving_out(self) -> np.ndarray:
        """The figure without each group in turn, shape [G]."""
        if self.without:
            return np.array(self.without)
        above, below = np.array(self.numerators), np.array(self.denominators)
        return (above.sum() - above) / (below.sum() - below)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.10g}") for value in values.tolist())


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds that were all measured on the same text, whose interval covers other seeds and other text.

    An interval over seeds alone says how other seeds would fare on this very text. Where a figure varies more over texts
    than over seeds, it is far too narrow: Clark (1973), "The language-as-fixed-effect fallacy"; Owen (2007), "The
    pigeonhole bootstrap". Seeds s and groups of text g are crossed random effects. The pseudo-values of the jackknife over
    groups, ``P_sg = G f_s - (G - 1) f_s(without g)`` (Tukey 1958), have mean squares MS_S, MS_G and MS_SG, and the mean
    has the variance ``(MS_S + MS_G - MS_SG) / (S G)``: the denominator of Clark's quasi-F, here no less than with
    MS_S or MS_G alone. Its degrees of freedom are Satterthwaite's (1946). In simulations it holds the mean 94 to 96 times
    in 100, up to 99 where seeds and text only matter together (tests/evals/test_statistics.py).

    Attributes:
        value: the mean.
        standard_error, df: of the mean, and its degrees of freedom.
    """

    value: float
    standard_error: float
    df: float

    @classmethod
    def of(cls, values: Sequence[float], without: np.ndarray) -> CrossedMean:
        """From at least 2 seeds.

        Args:
            values: one per seed.
            without: the same without each group of text, shape [S, G].
        """
        n_seeds, n_groups = without.shape
        pseudo = n_groups * np.asarray(values)[:, None] - (n_groups - 1) * without
        mean = pseudo.mean()
        of_seeds, of_groups = pseudo.mean(axis=1), pseudo.mean(axis=0)
        rest = pseudo - of_seeds[:, None] - of_groups + mean
        dfs = np.array([n_seeds - 1, n_groups - 1, (n_seeds - 1) * (n_groups - 1)])
        squares = [n_groups * np.square(of_seeds - mean), n_seeds * np.square(of_groups - mean), np.square(rest)]
        mean_squares = np.array([part.sum() for part in squares]) / dfs
        seeds, groups, both = mean_squares
        total = max(seeds + groups - both, seeds, groups)
        spread = float((np.square(mean_squares) / dfs).sum())
        df = max(1.0, total**2 / spread) if spread > 0 else float(n_seeds - 1)
        return cls(float(np.mean(values)), math.sqrt(total / (n_seeds * n_groups)), df)

    def estimate(self) -> Estimate:
        """The mean with its 95% interval."""
        half = float(student_t.ppf(0.975, self.df)) * self.standard_error
        return Estimate(value=self.value, low=self.value - half, high=self.value + half)

    @property
    def p(self) -> float | None:
        """Of a two-sided test that the mean is zero; None where nothing varies."""
        return float(2 * stdtr(self.df, -abs(self.value) / self.standard_error)) if self.standard_error > 0 else None

    @property
    def detectable(self) -> float:
        """The smallest true mean that such a test finds with a probability of 80%; df is rounded down to quarters."""
        return _noncentrality(math.floor(4 * min(self.df, 400)) / 4) * self.standard_error


def detectable_difference(differences: Sequence[float]) -> float | None:
    """The smallest true difference that a two-sided 5% t-test on so many seeds would find with a probability of 80%.

    The noncentrality at which the test has that power, times ``s / sqrt(n)``, s the standard deviation of the
    differences; None below 2 seeds.

    Args:
        differences: paired by seed.
    """
    n = len(differences)
    return float(_noncentrality(n - 1) * np.std(differences, ddof=1) / math.sqrt(n)) if n > 1 else None


@cache
def _t_bound(n: int) -> float:
    """The 97.5% quantile of Student's t for n values, which scipy takes long to look up."""
    return float(student_t.ppf(0.975, n - 1))


@cache
def _noncentrality(df: float) -> float:
    """Of a t-test with these degrees of freedom that finds a difference with a probability of 80%."""
    bound = float(student_t.ppf(0.975, df))
    # The mean over what the sample's standard deviation may be, by quadrature: scipy's noncentral t fails for 2 seeds.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    spread = np.sqrt(chi2.ppf((nodes + 1) / 2, df) / df)

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
