"""Ablating features in pooled activations: which features a probe depends on, and its predictions without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from scansion.device import dtype_name
from scansion.evals.base import LoadedSAE, reasons_before_running
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import LinearProbe
from scansion.evals.probing.sets import probing_source
from scansion.evals.reading.texts import TextReader
from scansion.evals.reading.training import ReadsTexts
from scansion.lm import HookPoint, LanguageModel

THRESHOLDS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of features ablated; SAEBench's."""

AUDIT = (
    "a 2026 audit of SAE benchmarks (arXiv:2605.18229) advises against SCR and TPP as measures of an SAE's quality; "
    "read these figures as a description, not as a ranking"
)


class AblationConfig(ReadsTexts):
    """What both evaluations set."""

    n_values: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=THRESHOLDS, description="Numbers of features to ablate."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Texts per batch of the LM.")
    seed: int = Field(default=42, ge=0, lt=2**63, description="Seed for drawing texts and for the bootstrap.")


@dataclass(frozen=True)
class Pooled:
    """Texts averaged over their tokens: the LM's activations, the features in their units, and the decoder that links them.

    The decoder is linear, so taking features out of every token and then averaging equals taking their averages out of
    the average: nothing needs the tokens themselves.
    """

    x: Float[np.ndarray, "n d_in"]
    acts: Float[np.ndarray, "n d_sae"]
    W_dec: Float[np.ndarray, "d_sae d_in"]

    def without(self, rows: Int[np.ndarray, " m"], features: Int[np.ndarray, " k"]) -> Float[np.ndarray, "m d_in"]:
        """The activations with these features at zero; what the SAE does not reconstruct stays as it is."""
        return self.x[rows] - self.acts[np.ix_(rows, features)] @ self.W_dec[features]


def pool_set(
    name: str,
    texts: Sequence[str],
    subjects: Sequence[LoadedSAE],
    lm: LanguageModel,
    hook_point: HookPoint,
    config: AblationConfig,
) -> list[Pooled]:
    """The texts of a data set, pooled for each SAE."""
    reader = TextReader(lm, hook_point, config.text_length, config.lm_batch_size)
    pooled = pool_texts(
        texts, reader, [subject.sae for subject in subjects], what=f"pool {name}", in_units_of_input=True
    )
    return [
        Pooled(pooled.lm, acts, subject.sae.directions.detach().float().cpu().numpy())
        for subject, acts in zip(subjects, pooled.saes, strict=True)
    ]


def reasons_from_firing(subject: LoadedSAE, fired: bool) -> list[str]:
    """Why the SAE is degenerate, given whether any feature fired on any text."""
    return reasons_before_running(subject) + ([] if fired else ["all features are dead: none fired on any text"])


def data_with(lm: LanguageModel, config: AblationConfig) -> dict[str, Any]:
    """The ``data`` of a result: settings, version of the labelled texts, and type of the LM."""
    return {
        "config": config.model_dump(mode="json"),
        "source": probing_source(),
        "lm_dtype": dtype_name(lm.model.dtype),
    }


def effects(
    pooled: Pooled,
    rows: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    probe: LinearProbe,
    *,
    positive_only: bool,
) -> Float[np.ndarray, " d_sae"]:
    """Each feature's difference of class means times its decoder row's product with the probe.

    The first-order effect of ablating the feature on the probe (attribution patching, as in SHIFT, Marks et al. 2024).

    Args:
        pooled: texts.
        rows, labels: those the means are taken over; 0 or 1.
        probe: the probe whose dependence on features is measured.
        positive_only: leave out features that fire less on the positive class.
    """
    difference = pooled.acts[rows[labels > 0]].mean(axis=0) - pooled.acts[rows[labels == 0]].mean(axis=0)
    return (np.maximum(difference, 0.0) if positive_only else difference) * (pooled.W_dec @ probe.weight)


def strongest(effect: Float[np.ndarray, " d_sae"], n: int) -> Int[np.ndarray, " k"]:
    """The n features of largest effect; those without any are never taken."""
    order = np.argsort(-effect, kind="stable")
    return order[effect[order] != 0][:n]
