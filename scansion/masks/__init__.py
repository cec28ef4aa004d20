"""Positional masks: which feature may fire at which token position. One file per family.

A new family is two classes and a decorator (see ``examples/periodic_mask.py``):

    class MyMaskConfig(MaskConfig, frozen=True):
        family: Literal["mine"] = "mine"

    @register_mask(MyMaskConfig)
    class MyMask(HardMask): ...
"""

from scansion.masks.adaptive import AdaptiveMask, AdaptiveMaskConfig
from scansion.masks.application import gated_product
from scansion.masks.bands import BandMask, BandMaskConfig
from scansion.masks.base import MaskConfig, PositionalMask
from scansion.masks.gate import ActsOn, Bands, Gate
from scansion.masks.hard import HardMask
from scansion.masks.importance import ImportanceMask, ImportanceMaskConfig
from scansion.masks.learnt import LearntConfig, LearntMask
from scansion.masks.none import LiftedMask, NoMask, NoMaskConfig
from scansion.masks.permuted import PermutedMask
from scansion.masks.random_hard import RandomHardMask, RandomHardMaskConfig
from scansion.masks.registry import MASKS, AnyMaskConfig, build_mask, parse_mask_config, register_mask
from scansion.masks.schedule import MaskUpdates, Temperature
from scansion.masks.soft import SoftMask, SoftMaskConfig
from scansion.masks.starts import Start
from scansion.masks.usage import UsageBandMask, UsageBandMaskConfig

__all__ = [
    "MASKS",
    "ActsOn",
    "AdaptiveMask",
    "AdaptiveMaskConfig",
    "AnyMaskConfig",
    "BandMask",
    "BandMaskConfig",
    "Bands",
    "Gate",
    "HardMask",
    "ImportanceMask",
    "ImportanceMaskConfig",
    "LearntConfig",
    "LearntMask",
    "LiftedMask",
    "MaskConfig",
    "MaskUpdates",
    "NoMask",
    "NoMaskConfig",
    "PermutedMask",
    "PositionalMask",
    "RandomHardMask",
    "RandomHardMaskConfig",
    "SoftMask",
    "SoftMaskConfig",
    "Start",
    "Temperature",
    "UsageBandMask",
    "UsageBandMaskConfig",
    "build_mask",
    "gated_product",
    "parse_mask_config",
    "register_mask",
]
