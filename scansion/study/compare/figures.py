"""The figures of a study: what each is called in tables, which way is better, and which ones a headline shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.position import PositionConfig
from scansion.evals.probing.evaluate import SparseProbingConfig


@dataclass(frozen=True)
class Metric:
    """How a figure is shown.

    Attributes:
        label: column heading.
        better: which way is better; None where neither is.
        scale: factor applied before it is shown, as the label says.
        digits: after the point.
    """

    label: str
    better: Literal["higher", "lower"] | None = None
    scale: float = 1.0
    digits: int = 3


_KNOWN = {
    "fve": Metric("FVE", "higher"),
    "normalised_mse": Metric("normalised MSE", "lower"),
    "cosine": Metric("cosine", "higher"),
    "l0": Metric("L0", None, digits=1),
    "l1": Metric("L1", None),
    "dead_share": Metric("dead", "lower"),
    "dense_share": Metric("dense", "lower"),
    "duplicate_share": Metric("duplicates", "lower"),
    "ce_loss_recovered": Metric("CE recovered", "higher"),
    "ce_loss": Metric("CE loss, nats", "lower"),
    "kl": Metric("KL, nats", "lower"),
    "sae_test_accuracy": Metric("probe, all features", "higher"),
    "llm_test_accuracy": Metric("LM probe"),
    "position_information": Metric("position, mbit", None, 1000, 2),
    "position_information_lifted": Metric("position, mask lifted, mbit", None, 1000, 2),
    "position_share_lifted": Metric("position, % of entropy, lifted", None, 100, 2),
    "position_l0_lifted": Metric("L0, mask lifted", None, digits=1),
    "excess_specialisation": Metric("excess over permuted, mbit", "higher", 1000, 2),
    "positional_fidelity": Metric("fidelity (AUROC of mask)", "higher"),
    "positional_overlap": Metric("overlap with mask", "higher"),
    "position_retention": Metric("retention, mask lifted", "higher"),
    "position_retention_chance": Metric("retention, chance"),
    "positional_features": Metric("positional features", None),
    "start_similarity": Metric("likeness to start"),
    "stay_share": Metric("stay when moved"),
    "move_share": Metric("move with text"),
    "sink_fve": Metric("FVE of the sink alone"),
}
HEADLINE = (
    "fve",
    "l0",
    "dead_share",
    "ce_loss_recovered",
    "sae_top_1_test_accuracy",
    "sae_top_5_test_accuracy",
    "sae_test_accuracy",
    "position_information",
    "position_information_lifted",
    "position_share_lifted",
    "excess_specialisation",
    "positional_fidelity",
    "position_retention",
)
"""What a summary table shows, where it was measured."""

_CORE = ("fve", "normalised_mse", "cosine", "l0", "l1", "dead_share", "dense_share", "duplicate_share")
_WITH_LM = ("ce_loss_recovered", "ce_loss", "kl")
_PROBING = (
    "llm_test_accuracy", "sae_test_accuracy", "bag_of_words_test_accuracy", "random_sae_test_accuracy",
    "sae_test_accuracy_gain",
)  # fmt: skip
_PROBING_BY_K = ("llm_top_{}_test_accuracy", "sae_top_{}_test_accuracy", "sae_top_{}_test_accuracy_gain")
_POSITION = (
    "position_information", "position_information_lifted", "position_share_lifted", "position_l0_lifted",
    "excess_specialisation", "positional_fidelity", "positional_overlap", "position_retention",
    "position_retention_chance", "positional_features", "start_similarity", "stay_share", "move_share", "sink_fve",
)  # fmt: skip


def metric(name: str) -> Metric:
    """How the figure of this name is shown; those not known keep their name."""
    if name in _KNOWN:
        return _KNOWN[name]
    if match := re.fullmatch(r"(sae|llm|random)_top_(\d+)_test_accuracy", name):
        who = {"sae": "probe", "llm": "LM probe", "random": "untrained probe"}[match[1]]
        return Metric(f"{who}, k={match[2]}", "higher" if match[1] == "sae" else None)
    return Metric(name.replace("_", " "))


def measured_figures(
    core: CoreConfig, sparse_probing: SparseProbingConfig | None, position: PositionConfig | None
) -> list[str]:
    """Names of all the figures that evaluations with these settings give; None is not evaluated."""
    found = [*_CORE, *(_WITH_LM if core.loss_contexts else ())]
    if sparse_probing is not None:
        found += [*_PROBING, *(name.format(k) for k in sparse_probing.k_values for name in _PROBING_BY_K)]
    return found + list(_POSITION if position is not None else ())
