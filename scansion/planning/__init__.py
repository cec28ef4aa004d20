"""Estimates for work of any size: time, money, storage and network, from measured rates; and failures of machines."""

from __future__ import annotations

from scansion.planning.estimate import Estimate, Stage, StoreOrAgain, estimate
from scansion.planning.failures import Interval, Reliability, best_interval, straggler_factor, young
from scansion.planning.machines import Kind, MachineConfig, kind_of
from scansion.planning.workload import DictionaryConfig, ModelSizes, Workload, model_sizes

__all__ = [
    "DictionaryConfig",
    "Estimate",
    "Interval",
    "Kind",
    "MachineConfig",
    "ModelSizes",
    "Reliability",
    "Stage",
    "StoreOrAgain",
    "Workload",
    "best_interval",
    "estimate",
    "kind_of",
    "model_sizes",
    "straggler_factor",
    "young",
]
