"""Round a learnt mask to hard bands, so that the SAE runs on the fast, banded execution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.errors import ConfigError
from scansion.masks import BandMaskConfig
from scansion.sae.base import SAE
from scansion.sae.registry import build_sae


@dataclass(frozen=True)
class Rounded:
    """An SAE with a hard banded mask, and what the rounding lost.

    Attributes:
        sae: features reordered: shared ones first, then band by band; order within each as before.
        order: the feature of the old SAE that stands at each place of the new one.
        mass_lost: share of the old mask's weight that is outside the positions each feature keeps, in [0, 1].
    """

    sae: SAE
    order: Int[Tensor, "d_sae"]
    mass_lost: float


@torch.no_grad()
def round_to_bands(sae: SAE, n_bands: int, keep: float = 0.5) -> Rounded:
    """Give each feature the one band that holds most of its weight, or all positions if no band holds enough.

    The mean weight of a feature where it keeps firing is folded into its encoder, so that a soft weight of 0.6
    everywhere and a hard 1 give the same activations.

    Args:
        sae: with any mask that acts in the forward pass; not changed.
        n_bands: number of equal bands.
        keep: share of its weight, in (0, 1], that a band must hold for the feature to be tied to it.

    Raises:
        ConfigError: the mask does not act in the forward pass, has one decoder bias per band, or ``n_bands`` or ``keep``
            does not fit.
    """
    if sae.mask.gate.bands is not None:
        raise ConfigError(
            f"the mask is one of hard bands already ({sae.config.mask.family}): there is nothing to round"
        )
    if not sae.mask.gate.forward or sae.b_dec.ndim != 1:
        raise ConfigError(
            f"a mask that acts on {sae.config.mask.acts_on!r} or has several decoder biases cannot be rounded to bands"
        )
    if not 0 < keep <= 1:
        raise ConfigError(f"keep should be in (0, 1], not {keep}")
    edges = BandMaskConfig(count=n_bands).edges_for(sae.n_positions)
    weights = _weights_in_force(sae)
    by_band = torch.stack([weights[a:b].sum(dim=0) for a, b in pairwise(edges)])
    total = weights.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    share, best = (by_band / total).max(dim=0)
    band = torch.where(share >= keep, best, -1)
    order = torch.argsort(band, stable=True)
    n_shared = int((band < 0).sum())
    if n_shared == sae.d_sae:
        raise ConfigError(f"no band of {n_bands} holds {keep:.0%} of any feature's weight; ask for fewer bands or less")
    sizes = tuple(int((band == g).sum()) for g in range(n_bands))
    mask = BandMaskConfig(edges=edges, sizes=sizes, shared=n_shared / sae.d_sae)
    new = build_sae(sae.config.model_copy(update={"mask": mask}), sae.d_in, sae.n_positions, torch.Generator())
    state = new.state_dict()
    state.update({name: tensor for name, tensor in sae.state_dict().items() if not name.startswith("mask.")})
    new.load_state_dict(state)
    new.permute_features(order)
    kept = new.mask(torch.arange(new.n_positions))
    ordered = weights[:, order]
    inside = (ordered * kept).sum(dim=0)
    factor = inside / kept.sum(dim=0).clamp_min(1)
    new.W_enc *= factor
    new.b_enc *= factor
    lost = 1 - float(inside.sum() / weights.sum())
    return Rounded(new.eval(), order, lost)


def _weights_in_force(sae: SAE) -> Float[Tensor, "L d_sae"]:
    positions = torch.arange(sae.n_positions, device=sae.W_dec.device)
    if sae.mask.gate.kind == "straight_through":
        return sae.mask.is_open(positions).float().cpu()
    return sae.mask(positions).float().cpu()
