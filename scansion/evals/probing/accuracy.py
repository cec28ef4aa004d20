"""From which test texts each probe got right to accuracies with intervals, over tasks and over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scansion.evals.statistics import BOOTSTRAP_SAMPLES, TEXT_GROUPS, Estimate, TextGroups

_DECIMALS = 12


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of some probes, and what they would have been on other draws of test texts.

    Attributes:
        value: in [0, 1] or NaN, one a probe.
        samples: the same for each bootstrap draw.
        hits: their sums over groups of test texts, which add up to ``value``.
        shares: the share of all test texts in each group.
    """

    value: Float[np.ndarray, " probes"]
    samples: Float[np.ndarray, "draws probes"]
    hits: Float[np.ndarray, "groups probes"]
    shares: Float[np.ndarray, " groups"]

    def estimates(self) -> list[Estimate]:
        """Each accuracy with its 95% percentile interval."""
        low, high = np.percentile(self.samples, [2.5, 97.5], axis=0)
        return [Estimate(value=v, low=a, high=b) for v, a, b in zip(self.value, low, high, strict=True)]

    def minus(self, other: Accuracies) -> Accuracies:
        """The differences, draw by draw: paired, since equal seeds draw the same texts.

        Args:
            other: of as many probes, or of one, on the same texts and from the same seed.
        """
        # Probes that get the same texts right differ by the rounding of a sum, which must not count as a gain.
        return Accuracies(
            (self.value - other.value).round(_DECIMALS),
            (self.samples - other.samples).round(_DECIMALS),
            (self.hits - other.hits).round(_DECIMALS),
            self.shares,
        )

    def first(self) -> Accuracies:
        """Those of the first probe alone."""
        return Accuracies(self.value[:1], self.samples[:, :1], self.hits[:, :1], self.shares)

    def by_text(self) -> list[TextGroups | None]:
        """Each accuracy by group of test texts."""
        return [TextGroups.of_ratio(column, self.shares) for column in self.hits.T]


def over_tasks(
    correct: Sequence[Float[np.ndarray, "probes _"]], texts: Sequence[Int[np.ndarray, " _"]], seed: Sequence[int]
) -> Accuracies:
    """The mean over tasks of each probe's accuracy; draws are of texts, since one text may be tested in several tasks.

    Args:
        correct: for each task, 1 where a probe got a test text right, else 0; NaN carries through.
        texts: for each task, an id of each test text; equal ids are the same text.
        seed: of the draws, any numbers; equal seeds draw the same texts, whichever features were probed.
    """
    ids, units = np.unique(np.concatenate(texts), return_inverse=True)
    # A test text counts 1 / (test texts of its task), so that every task counts the same.
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in texts])
    hits = np.concatenate(correct, axis=1) * weights
    numerators = np.zeros((len(ids), len(hits)))
    np.add.at(numerators, units, hits.T)
    denominators = np.bincount(units, weights=weights, minlength=len(ids))
    # Groups of equally many texts, for the variance over texts; drawn apart from the bootstrap, whose draws stay as they were.
    groups = np.random.default_rng([*seed, 1]).permutation(len(ids)) % min(TEXT_GROUPS, len(ids))
    group_hits = np.zeros((int(groups.max()) + 1, len(hits)))
    np.add.at(group_hits, groups, numerators)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=BOOTSTRAP_SAMPLES).astype(np.float64)
    return Accuracies(
        value=np.mean([one.mean(axis=1) for one in correct], axis=0),
        samples=(counts @ numerators) / (counts @ denominators)[:, None],
        hits=group_hits / len(correct),
        shares=np.bincount(groups, denominators) / len(correct),
    )


def over_data_sets(parts: Sequence[Accuracies]) -> Accuracies:
    """The mean over data sets. The choice of data sets is fixed, so it adds nothing to the intervals."""
    return Accuracies(
        value=np.mean([part.value for part in parts], axis=0),
        samples=np.mean([part.samples for part in parts], axis=0),
        hits=_mean_over_groups([part.hits for part in parts]),
        shares=_mean_over_groups([part.shares for part in parts]),
    )


def _mean_over_groups(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over data sets of sums by group; a set of very few texts lacks the last groups."""
    total = np.zeros((max(map(len, parts)), *parts[0].shape[1:]))
    for part in parts:
        total[: len(part)] += part
    return total / len(parts)
