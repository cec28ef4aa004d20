"""Sparse autoencoders: an encoder, an activation function, a decoder, and a positional mask between the first two.

A new architecture is two classes and a decorator (see ``examples/architecture.py``):

    class MyConfig(SAEConfig, frozen=True):
        architecture: Literal["mine"] = "mine"

    @register_architecture(MyConfig)
    class MySAE(SAE): ...
"""

from scansion.sae.architectures.batch_topk import BatchTopKConfig, BatchTopKSAE
from scansion.sae.architectures.gated import GatedConfig, GatedSAE
from scansion.sae.architectures.jumprelu import JumpReluConfig, JumpReluSAE
from scansion.sae.architectures.matryoshka import MatryoshkaConfig, MatryoshkaSAE
from scansion.sae.architectures.relu import ReluConfig, ReluSAE
from scansion.sae.architectures.switch import SwitchConfig, SwitchSAE
from scansion.sae.architectures.temporal_crosscoder import TemporalCrosscoder, TemporalCrosscoderConfig
from scansion.sae.architectures.topk import TopKConfig, TopKSAE
from scansion.sae.architectures.tsae import TSAE, TSAEConfig
from scansion.sae.base import SAE, SAEConfig
from scansion.sae.forward import ForwardPass, Losses, Part
from scansion.sae.input_norm import InputNorm
from scansion.sae.io import WEIGHTS, load_sae, sae_fingerprint, save_sae
from scansion.sae.metadata import SAEMetadata, StartedFrom
from scansion.sae.registry import (
    ARCHITECTURES,
    AnySAEConfig,
    build_sae,
    n_previous,
    parse_sae_config,
    register_architecture,
    window_of,
)

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "TSAE",
    "WEIGHTS",
    "AnySAEConfig",
    "BatchTopKConfig",
    "BatchTopKSAE",
    "ForwardPass",
    "GatedConfig",
    "GatedSAE",
    "InputNorm",
    "JumpReluConfig",
    "JumpReluSAE",
    "Losses",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "Part",
    "ReluConfig",
    "ReluSAE",
    "SAEConfig",
    "SAEMetadata",
    "StartedFrom",
    "SwitchConfig",
    "SwitchSAE",
    "TSAEConfig",
    "TemporalCrosscoder",
    "TemporalCrosscoderConfig",
    "TopKConfig",
    "TopKSAE",
    "build_sae",
    "load_sae",
    "n_previous",
    "parse_sae_config",
    "register_architecture",
    "sae_fingerprint",
    "save_sae",
    "window_of",
]
