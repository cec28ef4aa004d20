"""What the unlearning evaluation returns: every setting's accuracies, and the score."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from scansion.evals.extra_result import ExtraResult

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
            there is none. Higher is better.
    """

    eval: str = "unlearning"
    source: str
    n_forget: int
    n_retain: int
    forget_accuracy: float
    retain_accuracy: float
    forget_chance: float
    score: float | None
    interventions: list[Intervention]

    def headline(self) -> dict[str, float | None]:
        """The score, and the untouched accuracies."""
        if self.status != "ok":
            return {}
        return {
            "unlearning": self.score,
            "forget_accuracy": self.forget_accuracy,
            "retain_accuracy": self.retain_accuracy,
        }


def score(interventions: Sequence[Intervention]) -> float:
    """See :class:`UnlearningResult`."""
    return 1 - min((one.forget_kept for one in interventions if one.retain_kept >= _KEPT), default=1.0)
