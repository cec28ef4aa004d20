"""What a notebook shows of an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scansion.cards import card

if TYPE_CHECKING:
    from scansion.sae.base import SAE


def sae_card(sae: SAE) -> str:
    """Size, mask and provenance as an HTML card."""
    mask, origin = sae.config.mask, sae.provenance
    settings = mask.model_dump(mode="json", exclude_defaults=True, exclude={"family"})
    facts = {
        "features": f"{sae.d_sae:,}, of activations of width {sae.d_in:,}",
        "positions": f"{sae.n_positions:,}",
        "mask": ", ".join([mask.family, *(f"{name} {value}" for name, value in settings.items())]),
        "free of the mask": f"{sae.mask.n_shared:,} features" if sae.mask.n_shared < sae.d_sae else "",
    }
    if origin is not None:
        facts |= {
            "model": f"{origin.model}, {origin.hook_point}",
            "trained": f"{origin.tokens:,} tokens in {origin.steps:,} steps, seed {origin.seed}",
        }
    return card(f"{sae.config.architecture} SAE", facts)
