"""Small SAEs in which every convention that libraries differ in makes a difference."""

from __future__ import annotations

import torch

from scansion.sae import SAE, SAEConfig, SAEMetadata, build_sae


def sae_of(config: SAEConfig, d_in: int = 24) -> SAE:
    """Random weights and biases; decoder rows of different lengths; thresholds of which some features are above."""
    generator = torch.Generator().manual_seed(1)
    sae = build_sae(config, d_in, 8, generator).eval()
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if "threshold" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif not name.startswith("mask"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.5 if tensor.ndim == 1 else 0.3))
    return sae


def metadata() -> SAEMetadata:
    """Of an SAE on the tests' language model."""
    return SAEMetadata(
        model="llama", model_revision="test", hook_point="resid_post.1", store_key="k", contexts="c", context_length=8,
        use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=0, training={},
    )  # fmt: skip
