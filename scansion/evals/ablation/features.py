"""Ablating features in pooled activations: which features a probe depends on, and its predictions without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scansion.evals.probing.probes import LinearProbe

THRESHOLDS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of features ablated; SAEBench's."""

AUDIT = (
    "a 2026 audit of SAE benchmarks (arXiv:2605.18229) advises against SCR and TPP as measures of an SAE's quality; "
    "read these figures as a description, not as a ranking"
)


@dataclass(frozen=True)
class Pooled:
    """Texts averaged over their tokens: the LM's activations, the features, and the decoder that links them.

    The decoder is linear, so taking features out of every token and then averaging equals taking their averages out of
    the average: nothing needs the tokens themselves.
    """

    x: Float[np.ndarray, "n d_in"]
    acts: Float[np.ndarray, "n d_sae"]
    W_dec: Float[np.ndarray, "d_sae d_in"]

    def without(self, rows: Int[np.ndarray, " m"], features: Int[np.ndarray, " k"]) -> Float[np.ndarray, "m d_in"]:
        """The activations with these features at zero; what the SAE does not reconstruct stays as it is."""
        return self.x[rows] - self.acts[np.ix_(rows, features)] @ self.W_dec[features]


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
