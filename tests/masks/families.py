"""Every mask family and architecture in a small size, for laws that must hold for all of them."""

from __future__ import annotations

import torch

from scansion.masks import (
    AdaptiveMaskConfig,
    BandMaskConfig,
    ImportanceMaskConfig,
    MaskConfig,
    NoMaskConfig,
    RandomHardMaskConfig,
    SoftMaskConfig,
    Start,
    Temperature,
    UsageBandMaskConfig,
)
from scansion.sae import (
    SAE,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SwitchConfig,
    TemporalCrosscoderConfig,
    TopKConfig,
    TSAEConfig,
    build_sae,
)

L, D_IN, D_SAE = 12, 6, 36

FAMILIES: dict[str, MaskConfig] = {
    "random_hard": RandomHardMaskConfig(positions_per_feature=3),
    "random_hard, shared": RandomHardMaskConfig(positions_per_feature=3, shared=0.25),
    "bands": BandMaskConfig(count=3),
    "bands, shared": BandMaskConfig(count=3, shared=1 / 3),
    "groups": BandMaskConfig(preset="groups"),
    "static_slicing": BandMaskConfig(preset="static_slicing", count=4),
    "uneven bands": BandMaskConfig(edges=(0, 1, 7, 12), sizes=(4, 20, 6), shared=1 / 6),
    "soft": SoftMaskConfig(),
    "soft, shared": SoftMaskConfig(shared=0.25),
    "soft, at temperature 0": SoftMaskConfig(temperature=Temperature(start=0.0)),
    "importance": ImportanceMaskConfig(),
    "adaptive": AdaptiveMaskConfig(positions_per_feature=3),
    "adaptive, on average": AdaptiveMaskConfig(positions_per_feature=3, budget="average", start=Start(kind="random")),
    "adaptive, shared": AdaptiveMaskConfig(positions_per_feature=3, shared=0.25),
    "usage_bands": UsageBandMaskConfig(count=3, shared=1 / 3),
}
HARD = [
    "random_hard", "random_hard, shared", "bands", "bands, shared", "groups", "static_slicing", "uneven bands",
    "soft, at temperature 0", "usage_bands",
]  # fmt: skip
BANDED = ["bands", "bands, shared", "groups", "static_slicing", "uneven bands", "usage_bands"]
ARCHITECTURES = {
    "relu": lambda mask: ReluConfig(d_sae=D_SAE, mask=mask, l1_coefficient=0.1),
    "topk": lambda mask: TopKConfig(d_sae=D_SAE, k=5, mask=mask),
    "batch_topk": lambda mask: BatchTopKConfig(d_sae=D_SAE, k=5, mask=mask),
    "jumprelu": lambda mask: JumpReluConfig(
        d_sae=D_SAE, mask=mask, initial_threshold=0.1, bandwidth=0.5, l0_coefficient=0.1
    ),
    "gated": lambda mask: GatedConfig(d_sae=D_SAE, mask=mask, l1_coefficient=0.1),
    "matryoshka": lambda mask: MatryoshkaConfig(d_sae=D_SAE, k=5, prefixes=(0.25, 0.5, 1.0), mask=mask),
    "switch": lambda mask: SwitchConfig(d_sae=D_SAE, k=5, n_experts=3, mask=mask),
}
# Those that learn from the token before as well.
PAIRED = {"tsae": lambda mask: TSAEConfig(d_sae=D_SAE, k=5, prefixes=(0.25, 1.0), mask=mask)}
# Those that encode the tokens before as well.
WINDOWED = {"temporal_crosscoder": lambda mask: TemporalCrosscoderConfig(d_sae=D_SAE, k=5, window=3, mask=mask)}
# Those whose code depends on the pre-activations alone.
UNROUTED = [name for name in ARCHITECTURES if name != "switch"]


def with_acts_on(name: str, acts_on: str) -> MaskConfig:
    """A family, acting where it is told to."""
    return FAMILIES[name].model_copy(update={"acts_on": acts_on})


def make_sae(architecture: str, mask: MaskConfig | None = None, seed: int = 0) -> SAE:
    """An SAE that looks trained: biases and thresholds are not where they start."""
    generator = torch.Generator().manual_seed(seed)
    sae = build_sae((ARCHITECTURES | PAIRED | WINDOWED)[architecture](mask or NoMaskConfig()), D_IN, L, generator)
    with torch.no_grad():
        sae.b_enc.copy_(0.1 * torch.randn(D_SAE, generator=generator))
        sae.b_dec.copy_(0.1 * torch.randn(sae.b_dec.shape, generator=generator))
        if architecture == "jumprelu":
            sae.log_threshold.add_(0.3 * torch.randn(D_SAE, generator=generator))
        if architecture == "gated":
            sae.r_mag.add_(0.3 * torch.randn(D_SAE, generator=generator))
            sae.b_mag.add_(0.1 * torch.randn(D_SAE, generator=generator))
    return sae


def some_x(seed: int = 1, n: int = 4) -> torch.Tensor:
    """Activations, [L, n, d_in]."""
    return torch.randn(L, n, D_IN, generator=torch.Generator().manual_seed(seed))


EVERYWHERE = torch.arange(L)
NONE_DEAD = torch.zeros(D_SAE, dtype=torch.bool)
