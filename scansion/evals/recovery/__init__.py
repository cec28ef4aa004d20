"""Recovery of planted features."""

from scansion.evals.recovery.recovery import evaluate_recovery
from scansion.evals.recovery.result import RecoveryResult

__all__ = ["RecoveryResult", "evaluate_recovery"]
