"""What the unlearning evaluation returns: every setting's accuracies, and the score."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict

from scansion.evals.extra_result import ExtraResult
from scansion.evals.result import BOOTSTRAP_SAMPLES, Estimate

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


class UnlearningResult(ExtraResult):
    """The untouched LM's accuracies, every setting's, and the score.

    Attributes:
        forget_accuracy, retain_accuracy: of the untouched LM; ``forget_chance`` is what guessing gives.
        score: 1 - the least ``forget_kept`` among settings whose ``retain_kept`` is at least 0.99, as in SAEBench; 0 if
            there is none. Higher is better. Its interval is a bootstrap over questions, in which the setting is chosen
            anew each time; for it is chosen by the questions that it is scored on.
        control: at the setting that the score is of, as many features drawn from all that could have been clamped; None
            where no setting takes anything, or there are no others.
    """

    eval: str = "unlearning"
    source: str
    n_forget: int
    n_retain: int
    forget_accuracy: float
    retain_accuracy: float
    forget_chance: float
    score: Estimate | None
    interventions: list[Intervention]
    control: Intervention | None

    def headline(self) -> dict[str, float | None]:
        """The score, what features drawn at random take, and the untouched accuracies."""
        if self.status != "ok" or self.score is None:
            return {}
        return {
            "unlearning": self.score.value,
            "unlearning_control": None if self.control is None else 1 - self.control.forget_kept,
            "forget_accuracy": self.forget_accuracy,
            "retain_accuracy": self.retain_accuracy,
        }


def best_setting(forget: Bool[np.ndarray, "settings n"], retain: Bool[np.ndarray, "settings m"]) -> int | None:
    """The setting that forgets most of those that keep enough; None where none of these forgets anything.

    Args:
        forget, retain: what is still answered right, of the questions of each side that the untouched LM has right.
    """
    kept, enough = forget.mean(axis=1), retain.mean(axis=1) >= _KEPT
    best = int(np.where(enough, kept, 1.0).argmin())
    return best if enough[best] and kept[best] < 1 else None


def score(forget: Bool[np.ndarray, "settings n"], retain: Bool[np.ndarray, "settings m"], seed: int) -> Estimate:
    """See :class:`UnlearningResult`; arguments as above, at least one question a side."""
    generator = np.random.default_rng(seed)

    def shares(right: np.ndarray) -> np.ndarray:
        """Of the questions as they are, then of those of each draw; [draws, settings]."""
        n = right.shape[1]
        counts = generator.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_SAMPLES)
        return np.concatenate([np.ones((1, n), dtype=int), counts]) @ right.T.astype(float) / n

    kept, of_rest = shares(forget), shares(retain)
    value, *samples = (1 - np.where(of_rest >= _KEPT, kept, 1.0).min(axis=1)).tolist()
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))
