"""Stretches of text around a feature's firings: what a judge is shown to explain it, and what it is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scansion.evals.interp.firing import Firing

Decode = Callable[[int], str]


@dataclass(frozen=True)
class Example:
    """Some successive tokens of one context, and what the feature did on each.

    Attributes:
        tokens: as text.
        acts: of the feature.
        threshold: an activation above it counts as firing.
    """

    tokens: tuple[str, ...]
    acts: tuple[float, ...]
    threshold: float

    @property
    def fires(self) -> bool:
        """Whether the feature fires on any token."""
        return max(self.acts) > self.threshold

    def text(self, *, marked: bool = False) -> str:
        """The text on one line, with ``<<`` and ``>>`` around tokens that fire if ``marked``."""
        parts = (
            f"<<{token}>>" if marked and act > self.threshold else token
            for token, act in zip(self.tokens, self.acts, strict=True)
        )
        return "".join(parts).replace("\ufffd", "").replace("\n", "↵")


@dataclass(frozen=True)
class ExampleCounts:
    """How many examples of each kind; the defaults are SAEBench's."""

    top_shown: int = 10
    weighted_shown: int = 5
    top_asked: int = 2
    weighted_asked: int = 2
    random_asked: int = 10
    buffer: int = 10
    threshold_share: float = 0.01


@dataclass(frozen=True)
class FeatureExamples:
    """``shown`` with their firings for an explanation, strongest first; ``asked`` about without them, in random order."""

    shown: list[Example]
    asked: list[Example]


def gather_examples(
    firing: Firing, column: int, decode: Decode, counts: ExampleCounts, generator: np.random.Generator
) -> FeatureExamples | None:
    """Examples of one feature: the strongest, some drawn by activation among the rest, and some drawn blindly.

    No two stretches of the first two kinds overlap. Those drawn blindly count as firing if the feature does fire there
    (SAEBench takes it that they never do).

    Returns:
        None if the feature does not fire at enough places.
    """
    acts = firing.acts[..., column]
    width, (n_positions, n_contexts) = counts.buffer, acts.shape
    whole = np.zeros(acts.shape, dtype=bool)
    for p in range(width, n_positions - width):
        whole[p] = firing.valid[p - width : p + width + 1].all(axis=0)
    whole &= firing.counted
    centres = np.where(whole, acts, 0.0)
    n_top, n_weighted = counts.top_shown + counts.top_asked, counts.weighted_shown + counts.weighted_asked
    top = _without_overlap(np.argsort(-centres, axis=None, kind="stable"), centres, width, n_top)
    if len(top) < n_top:
        return None
    rest = centres.copy()
    for p, c in top:
        rest[max(0, p - width) : p + width + 1, c] = 0.0
    order = _weighted_order(rest.ravel(), generator)
    weighted = _without_overlap(order, rest, width, n_weighted)
    if len(weighted) < n_weighted:
        return None
    blind = generator.choice(np.flatnonzero(whole), counts.random_asked, replace=False)
    threshold = counts.threshold_share * float(centres.max())

    def example(place: tuple[int, int]) -> Example:
        p, c = place
        span = slice(p - width, p + width + 1)
        return Example(
            tuple(decode(int(token)) for token in firing.tokens[span, c]),
            tuple(float(act) for act in acts[span, c]),
            threshold,
        )

    top = [top[i] for i in generator.permutation(n_top)]
    weighted = [weighted[i] for i in generator.permutation(n_weighted)]
    shown = [example(place) for place in top[: counts.top_shown] + weighted[: counts.weighted_shown]]
    asked = [example(place) for place in top[counts.top_shown :] + weighted[counts.weighted_shown :]]
    asked += [example((int(i) // n_contexts, int(i) % n_contexts)) for i in blind]
    shown.sort(key=lambda one: -max(one.acts))
    return FeatureExamples(shown, [asked[i] for i in generator.permutation(len(asked))])


def _without_overlap(
    order: Int[np.ndarray, " n"], acts: Float[np.ndarray, "P C"], width: int, count: int
) -> list[tuple[int, int]]:
    """The first places of the order where the feature fires and whose stretches do not overlap."""
    found: list[tuple[int, int]] = []
    for flat in order:
        p, c = int(flat) // acts.shape[1], int(flat) % acts.shape[1]
        if len(found) == count or acts[p, c] <= 0:
            break
        if all(c != other or abs(p - q) > 2 * width for q, other in found):
            found.append((p, c))
    return found


def _weighted_order(weights: Float[np.ndarray, " n"], generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random order in which heavier entries tend to come first (Efraimidis and Spirakis 2006); zeros come last."""
    with np.errstate(divide="ignore"):
        keys = np.where(weights > 0, np.log(generator.random(len(weights))) / weights, -np.inf)
    return np.argsort(-keys, kind="stable")
