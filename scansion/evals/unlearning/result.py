"""What the unlearning evaluation returns: every setting's accuracies, and the score."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from scansion.evals.base import EvalResult
from scansion.evals.statistics import Estimate

# A setting counts if the LM keeps this share of the retained questions it had right.
_KEPT = 0.99


class Intervention(BaseModel):
    """What one setting did; accuracies in [0, 1].

    Attributes:
        features: those clamped, by how often they fire on what is to be forgotten.
        forget_accuracy, retain_accuracy: over all questions.
        forget_kept, retain_kept: over those the untouched LM had right.
    """

    model_config = ConfigDict(extra="forbid")

    retain_threshold: float
    multiplier: float
    features: list[int]
    forget_accuracy: float
    retain_accuracy: float
    forget_kept: float
    retain_kept: float


class UnlearningResult(EvalResult):
    """The untouched LM's accuracies, every setting's, and the score.

    Attributes:
        forget_accuracy, retain_accuracy: of the untouched LM; ``forget_chance`` is what guessing gives.
        score: 1 - the least ``forget_kept`` among settings whose ``retain_kept`` is at least 0.99, as in SAEBench; 0 if
            there is none. Higher is better, and it is too high by what choosing the best by luck adds.
        held_out: without that: the share forgotten of half of the known questions, at the setting that the other half of
            either side chooses; with Wilson's interval. None where a half is empty.
        control: what other features do at the setting of the score: as many of those that could have been clamped and
            were not, one draw. They fire less on what is to be forgotten than those chosen. None where the score is 0 or
            there are too few.
    """

    eval: str = "unlearning"
    source: str
    n_forget: int
    n_retain: int
    forget_accuracy: float
    retain_accuracy: float
    forget_chance: float
    score: float | None = None
    held_out: Estimate | None = None
    interventions: list[Intervention]
    control: Intervention | None = None


def best_setting(forget: Bool[np.ndarray, "settings n"], retain: Bool[np.ndarray, "settings m"]) -> int | None:
    """The setting that forgets most of those that keep enough; None where none of these forgets anything.

    Args:
        forget, retain: what is still answered right, of the questions of each side that the untouched LM has right.
    """
    kept, kept_of_rest = shares(forget), shares(retain)
    of_those = np.where(kept_of_rest >= _KEPT, kept, 1.0)
    best = int(of_those.argmin())
    return best if of_those[best] < 1 else None


def shares(right: Bool[np.ndarray, "*settings n"]) -> Float[np.ndarray, "*settings"]:
    """Of the questions, still answered right; 1 where there are none."""
    return np.asarray(right.mean(axis=-1)) if right.shape[-1] else np.ones(right.shape[:-1])


def held_out(
    forget: Bool[np.ndarray, "settings n"], retain: Bool[np.ndarray, "settings m"], seed: int
) -> Estimate | None:
    """See :class:`UnlearningResult`; arguments as above."""
    generator = np.random.default_rng(seed)
    (first, second), (rest, _) = (np.array_split(generator.permutation(side.shape[1]), 2) for side in (forget, retain))
    if not (len(second) and len(rest)):
        return None
    best = best_setting(forget[:, first], retain[:, rest])
    lost = 0 if best is None else int((~forget[best, second]).sum())
    interval = binomtest(lost, len(second)).proportion_ci(method="wilson")
    return Estimate(value=lost / len(second), low=float(interval.low), high=float(interval.high))
