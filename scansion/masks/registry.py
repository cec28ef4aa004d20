"""The mask families, by name: built-in ones, those of installed packages and those of ``--plugin FILE.py``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from scansion.masks.base import MaskConfig, PositionalMask
from scansion.registry import Registry

MASKS: Registry[MaskConfig, type[PositionalMask]] = Registry("mask family", "family", MaskConfig, "scansion.masks")
"""Family name -> settings and mask."""

register_mask = MASKS.register
"""Class decorator: ``@register_mask(MyMaskConfig)`` makes a family known to plans, flags, saved SAEs and reports."""


def parse_mask_config(settings: dict[str, Any]) -> MaskConfig:
    """Settings as read from JSON or YAML -> the config of their ``family``.

    Raises:
        pydantic.ValidationError: an unknown key, or a value out of range.
        ConfigError: an unknown family.
    """
    return MASKS.parse(settings)


def build_mask(config: MaskConfig, n_positions: int, d_sae: int) -> PositionalMask:
    """The mask that ``config`` describes, for contexts of ``n_positions`` tokens and ``d_sae`` features.

    Raises:
        ConfigError: the settings do not fit these sizes, or the family is not registered.

    Example:
        >>> scansion.build_mask(scansion.BandMaskConfig(count=3, shared=0.25), n_positions=24, d_sae=48).table()
    """
    family: Any = MASKS.of(config)
    return family(config, n_positions, d_sae)


AnyMaskConfig = Annotated[SerializeAsAny[MaskConfig], BeforeValidator(MASKS.read)]
"""The settings of any family, chosen by ``family``; families registered later are included."""
