"""The architectures, by name: built-in ones, those of installed packages and those of ``--plugin FILE.py``."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, SerializeAsAny

from scansion.registry import Registry
from scansion.sae.base import SAE, SAEConfig

ARCHITECTURES: Registry[SAEConfig, type[SAE]] = Registry(
    "architecture", "architecture", SAEConfig, "scansion.architectures"
)
"""Name -> settings and SAE class."""

register_architecture = ARCHITECTURES.register
"""Class decorator: ``@register_architecture(MySAEConfig)`` makes an architecture known to plans, flags and saved SAEs."""


def parse_sae_config(settings: dict[str, Any]) -> SAEConfig:
    """Settings as read from JSON or YAML -> the config of their ``architecture``.

    Raises:
        pydantic.ValidationError: an unknown key, or a value out of range.
        ConfigError: an unknown architecture.
    """
    return ARCHITECTURES.parse(settings)


def n_previous(config: SAEConfig) -> int:
    """How many of the tokens before each token an SAE of this config learns from."""
    return ARCHITECTURES.of(config).n_previous(config)


def window_of(config: SAEConfig) -> int:
    """How many adjacent tokens an SAE of this config encodes together; 1 for all but crosscoders."""
    return ARCHITECTURES.of(config).window_of(config)


def build_sae(config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> SAE:
    """A freshly initialised SAE for activations of ``d_in`` dimensions in contexts of ``n_positions`` tokens.

    Args:
        config: architecture, size and mask.
        d_in: width of the activations.
        n_positions: context length L, the length of the mask.
        generator: source of the initial decoder directions.

    Raises:
        ConfigError: the mask does not fit these sizes, or the architecture is not registered.
    """
    return ARCHITECTURES.of(config)(config, d_in, n_positions, generator)


AnySAEConfig = Annotated[SerializeAsAny[SAEConfig], BeforeValidator(ARCHITECTURES.read)]
"""The settings of any architecture, chosen by ``architecture``; those registered later are included."""
