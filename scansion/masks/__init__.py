"""Positional masks: which feature may fire at which token position. One file a family."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from scansion.masks.adaptive import AdaptiveMask, AdaptiveMaskConfig
from scansion.masks.application import gated_product
from scansion.masks.bands import BandMask, BandMaskConfig
from scansion.masks.base import ActsOn, Bands, MaskConfig, PositionalMask
from scansion.masks.importance import ImportanceMask, ImportanceMaskConfig
from scansion.masks.learnt import LearntMask
from scansion.masks.none import LiftedMask, NoMask, NoMaskConfig
from scansion.masks.permuted import PermutedMask
from scansion.masks.random_hard import RandomHardMask, RandomHardMaskConfig
from scansion.masks.schedule import MaskUpdates, Temperature
from scansion.masks.soft import SoftMask, SoftMaskConfig
from scansion.masks.starts import Start
from scansion.masks.usage import UsageBandMask, UsageBandMaskConfig

AnyMaskConfig = Annotated[
    NoMaskConfig
    | RandomHardMaskConfig
    | BandMaskConfig
    | SoftMaskConfig
    | ImportanceMaskConfig
    | AdaptiveMaskConfig
    | UsageBandMaskConfig,
    Field(discriminator="family"),
]
"""Any family's settings, told apart by ``family``."""

FAMILIES: dict[type[MaskConfig], type[PositionalMask]] = {
    NoMaskConfig: NoMask,
    RandomHardMaskConfig: RandomHardMask,
    BandMaskConfig: BandMask,
    SoftMaskConfig: SoftMask,
    ImportanceMaskConfig: ImportanceMask,
    AdaptiveMaskConfig: AdaptiveMask,
    UsageBandMaskConfig: UsageBandMask,
}
"""Config -> mask."""
_ADAPTER: TypeAdapter[MaskConfig] = TypeAdapter(AnyMaskConfig)


def parse_mask_config(settings: dict[str, Any]) -> MaskConfig:
    """Settings as read from JSON -> the config of their ``family``.

    Raises:
        pydantic.ValidationError: an unknown family, an unknown key, or a value out of range.
    """
    return _ADAPTER.validate_python(settings)


def build_mask(config: MaskConfig, n_positions: int, d_sae: int) -> PositionalMask:
    """The mask that ``config`` describes, for contexts of ``n_positions`` tokens and ``d_sae`` features.

    Raises:
        ConfigError: the settings do not fit these sizes.
    """
    family: Any = FAMILIES[type(config)]
    return family(config, n_positions, d_sae)


__all__ = [
    "FAMILIES",
    "ActsOn",
    "AdaptiveMask",
    "AdaptiveMaskConfig",
    "AnyMaskConfig",
    "BandMask",
    "BandMaskConfig",
    "Bands",
    "ImportanceMask",
    "ImportanceMaskConfig",
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
]
