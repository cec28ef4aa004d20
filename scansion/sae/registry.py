"""The architectures, by name."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter

from scansion.sae.architectures.batch_topk import BatchTopKConfig, BatchTopKSAE
from scansion.sae.architectures.jumprelu import JumpReluConfig, JumpReluSAE
from scansion.sae.architectures.matryoshka import MatryoshkaConfig, MatryoshkaSAE
from scansion.sae.architectures.relu import ReluConfig, ReluSAE
from scansion.sae.architectures.switch import SwitchConfig, SwitchSAE
from scansion.sae.architectures.temporal import TemporalConfig, TemporalSAE
from scansion.sae.architectures.topk import TopKConfig, TopKSAE
from scansion.sae.base import SAE, SAEConfig

AnySAEConfig = Annotated[
    ReluConfig | TopKConfig | BatchTopKConfig | JumpReluConfig | MatryoshkaConfig | TemporalConfig | SwitchConfig,
    Field(discriminator="architecture"),
]
"""Any architecture's settings, told apart by ``architecture``."""

_ARCHITECTURES: dict[type[SAEConfig], type[SAE]] = {
    ReluConfig: ReluSAE,
    TopKConfig: TopKSAE,
    BatchTopKConfig: BatchTopKSAE,
    JumpReluConfig: JumpReluSAE,
    MatryoshkaConfig: MatryoshkaSAE,
    TemporalConfig: TemporalSAE,
    SwitchConfig: SwitchSAE,
}
_ADAPTER: TypeAdapter[SAEConfig] = TypeAdapter(AnySAEConfig)


def parse_sae_config(settings: dict[str, Any]) -> SAEConfig:
    """Settings as read from JSON -> the config of their ``architecture``.

    Raises:
        pydantic.ValidationError: an unknown architecture, an unknown key, or a value out of range.
    """
    return _ADAPTER.validate_python(settings)


def uses_pairs(config: SAEConfig) -> bool:
    """Whether an SAE of this config learns from pairs of adjacent tokens."""
    return _ARCHITECTURES[type(config)].uses_pairs


def build_sae(config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> SAE:
    """A freshly initialised SAE for activations of ``d_in`` dimensions in contexts of ``n_positions`` tokens.

    Args:
        config: architecture, size and mask.
        d_in: width of the activations.
        n_positions: context length L, the length of the mask.
        generator: source of the initial decoder directions.
    """
    return _ARCHITECTURES[type(config)](config, d_in, n_positions, generator)
