"""Positional masks: which feature may fire at which token position. One file a family."""

from typing import Annotated, Any, cast

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from scansion.errors import ConfigError
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


def register_family(config: type[MaskConfig], mask: type[PositionalMask]) -> None:
    """Make a family of one's own known, so that plans, flags and saved SAEs may name it.

    An SAE that is saved with it can be loaded wherever the family is registered first.

    Args:
        config: its settings; the default of its field ``family`` is its name.
        mask: built as ``mask(config, n_positions, d_sae)``.

    Raises:
        ConfigError: another family has this name.
    """
    name = _name(config)
    if any(_name(other) == name and other is not config for other in FAMILIES):
        raise ConfigError(f"there is a mask family called {name!r} already")
    FAMILIES[config] = mask


def parse_mask_config(settings: dict[str, Any]) -> MaskConfig:
    """Settings as read from JSON -> the config of their ``family``.

    Raises:
        pydantic.ValidationError: an unknown key, or a value out of range.
        ConfigError: an unknown family.
    """
    family = settings.get("family")
    for config in FAMILIES:
        if _name(config) == family:
            return config.model_validate(settings)
    known = ", ".join(_name(config) for config in FAMILIES)
    raise ConfigError(f"no mask family is called {family!r}; there are {known}")


def _name(config: type[MaskConfig]) -> str:
    return str(config.model_fields["family"].default)


def _parsed(value: object) -> object:
    if not isinstance(value, dict):
        return value
    try:
        return parse_mask_config(cast(dict[str, Any], value))
    except ValidationError as error:  # in one line, for it becomes a part of another error
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(found)) from error


AnyMaskConfig = Annotated[SerializeAsAny[MaskConfig], BeforeValidator(_parsed)]
"""Any family's settings, told apart by ``family``; families registered later are among them."""


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
    "register_family",
]
