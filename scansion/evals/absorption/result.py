"""What the absorption evaluation returns: each letter, and the means over letters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from scansion.evals.base import EvalResult
from scansion.evals.statistics import Estimate


class LetterAbsorption(BaseModel):
    """Absorption of one letter.

    Attributes:
        probe_f1: of the probe on the LM's activations.
        sae_f1: of the probe on the features that stand for the letter.
        features: those features.
        n_words: test words of the letter that the LM's probe recognises; the rates are means over these.
        absorption_fraction, full_absorption_rate: in [0, 1].
    """

    model_config = ConfigDict(extra="forbid")

    letter: str
    probe_f1: float
    sae_f1: float
    features: list[int]
    n_words: int
    absorption_fraction: float
    full_absorption_rate: float


class AbsorptionResult(EvalResult):
    """Means over the letters that count, with intervals over words; None where the language model cannot spell.

    Attributes:
        spelling_accuracy: share of words whose letter the LM ranks first of 26 (chance about 1/26).
        probe_f1: mean over 26 letters of the F1 of a probe on the LM's activations.
        n_letters: letters that count.
        absorption_fraction, full_absorption_rate: in [0, 1]; lower is better.
        mean_main_features: features that stand for a letter, on average; above 1, letters are split.
        sae_f1: mean F1 of the probes on those features. With an F1 near 0 there is nothing that could be absorbed.
        position: the position that all words stand at; a positional mask shows its features of this position alone.
    """

    eval: str = "absorption"
    spelling_accuracy: float
    probe_f1: float
    n_letters: int
    absorption_fraction: Estimate | None = None
    full_absorption_rate: Estimate | None = None
    mean_main_features: float | None = None
    sae_f1: float | None = None
    position: int
    letters: list[LetterAbsorption]
