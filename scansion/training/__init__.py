"""Training: one loop for every architecture and mask, several SAEs on one stream, exact resume."""

from scansion.training.config import TrainingConfig
from scansion.training.loop import TrainingRun, check_folders, check_runs, train

__all__ = ["TrainingConfig", "TrainingRun", "check_folders", "check_runs", "train"]
