"""Features an SAE has learnt twice, as separate bands or experts must where they need the same one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# The measure of Mudide et al. 2024 (Switch SAE).
DUPLICATE_COSINE = 0.9
_CHUNK = 1024


@torch.no_grad()
def duplicate_share(W_dec: Float[Tensor, "n d_in"]) -> float:
    """Share of decoder rows that have a cosine above 0.9 with another one, in [0, 1]; 0 where there are no rows."""
    directions = torch.nn.functional.normalize(W_dec, dim=1)
    twice = 0
    for start in range(0, len(directions), _CHUNK):
        cosines = torch.mm(directions[start : start + _CHUNK], directions.T)
        cosines.diagonal(start).fill_(-1.0)
        twice += int((cosines.amax(dim=1) > DUPLICATE_COSINE).sum())
    return twice / max(1, len(directions))
