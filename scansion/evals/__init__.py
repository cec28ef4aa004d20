"""Evaluations: a folder each, from SAEs, a store and a language model to results with a status and figures with intervals.

Importing this package registers the built-in ones.
"""

# Not sorted: evaluations are listed and shown in the order in which they are registered.
# isort: off
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.registry import Evaluation, EvaluationConfig, Figure, evaluations, figures_in
from scansion.evals.core.evaluation import Core
from scansion.evals.probing.evaluation import SparseProbing
from scansion.evals.position.evaluation import Position
from scansion.evals.causal.evaluation import PositionCausal
from scansion.evals.absorption.evaluation import AbsorptionOfFirstLetters
from scansion.evals.ablation.evaluation import Scr, Tpp
from scansion.evals.interp.evaluation import AutoInterp, OfflineInterp
from scansion.evals.unlearning.evaluation import Unlearning
from scansion.evals.recovery.evaluation import Synthetic
from scansion.evals.suites.evaluation import SAEBench, SaeProbes
# isort: on

__all__ = [
    "AbsorptionOfFirstLetters",
    "AutoInterp",
    "Core",
    "EvalResult",
    "Evaluation",
    "EvaluationConfig",
    "Figure",
    "LoadedSAE",
    "OfflineInterp",
    "Position",
    "PositionCausal",
    "SAEBench",
    "SaeProbes",
    "Scr",
    "SparseProbing",
    "Synthetic",
    "Tpp",
    "Unlearning",
    "evaluations",
    "figures_in",
]
