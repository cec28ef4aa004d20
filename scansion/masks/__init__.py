"""Positional masks: which feature may fire at which token position. One file a family."""

from typing import Annotated

from pydantic import Field

from scansion.masks.base import MaskConfig, PositionalMask
from scansion.masks.none import NoMask, NoMaskConfig
from scansion.masks.random_hard import RandomHardMask, RandomHardMaskConfig

AnyMaskConfig = Annotated[NoMaskConfig | RandomHardMaskConfig, Field(discriminator="family")]
"""Any family's settings, told apart by ``family``."""

_FAMILIES: dict[type[MaskConfig], type[PositionalMask]] = {
    NoMaskConfig: NoMask,
    RandomHardMaskConfig: RandomHardMask,
}


def build_mask(config: MaskConfig, n_positions: int, d_sae: int) -> PositionalMask:
    """The mask that ``config`` describes, for contexts of ``n_positions`` tokens and ``d_sae`` features.

    Raises:
        ConfigError: the settings do not fit these sizes.
    """
    return _FAMILIES[type(config)](config, n_positions, d_sae)


__all__ = [
    "AnyMaskConfig",
    "MaskConfig",
    "NoMask",
    "NoMaskConfig",
    "PositionalMask",
    "RandomHardMask",
    "RandomHardMaskConfig",
    "build_mask",
]
