"""What each feature writes: its decoder row's largest entries, rows that point the same way, and the tokens that it raises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.lm import LanguageModel, unembed
from scansion.progress import progress

_ROWS_AT_ONCE = 256
LOGIT_BINS = 24
"""Steps of the histogram of logits."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other features of each.

    Attributes:
        features: nearest first.
        cosines: of their decoder rows with its own, in [-1, 1].
    """

    features: Int[np.ndarray, "F n"]
    cosines: Float[np.ndarray, "F n"]


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The tokens whose logits each decoder row raises and lowers most.

    Attributes:
        tokens: ids; first those raised, then those lowered, the strongest first in both.
        logits: what :func:`scansion.lm.unembed` says of them.
        histogram: how many of the vocabulary's tokens are in each of equal steps from the lowest logit to the highest.
    """

    tokens: Int[np.ndarray, "F 2 n"]
    logits: Float[np.ndarray, "F 2 n"]
    histogram: Int[np.ndarray, "F bins"]


@torch.no_grad()
def largest_entries(
    W_dec: Float[Tensor, "F d_in"], n: int = 3
) -> tuple[Int[np.ndarray, "F n"], Float[np.ndarray, "F n"]]:
    """The dimensions in which each decoder row is largest in absolute value, and its entries there."""
    rows = W_dec.detach().float()
    found = rows.abs().topk(min(n, rows.shape[1]), dim=1).indices
    return found.cpu().numpy(), rows.gather(1, found).cpu().numpy()


@torch.no_grad()
def nearest_features(W_dec: Float[Tensor, "F d_in"], n: int) -> Neighbours:
    """The ``n`` features (fewer if there are not so many) with the highest cosine of decoder rows, for each feature."""
    rows = torch.nn.functional.normalize(W_dec.detach().float(), dim=1)
    n = min(n, len(rows) - 1)
    features, cosines = [], []
    with progress("nearest features", len(rows), "features") as advance:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            near = rows[start : start + _ROWS_AT_ONCE] @ rows.T
            own = torch.arange(len(near), device=near.device)
            near[own, start + own] = -torch.inf
            top = near.topk(n, dim=1)
            features.append(top.indices.cpu())
            cosines.append(top.values.cpu())
            advance(len(near))
    return Neighbours(torch.cat(features).numpy(), torch.cat(cosines).numpy())


@torch.no_grad()
def nearest_in(W_dec: Float[Tensor, "F d_in"], other: Float[Tensor, "G d_in"]) -> Neighbours:
    """The feature of another SAE with the highest cosine of decoder rows, for each feature; [F, 1]."""
    rows, theirs = (torch.nn.functional.normalize(one.detach().float().cpu(), dim=1) for one in (W_dec, other))
    best = [(part @ theirs.T).max(dim=1) for part in rows.split(_ROWS_AT_ONCE)]
    features, cosines = (torch.cat([getattr(one, name) for one in best]) for name in ("indices", "values"))
    return Neighbours(features[:, None].numpy(), cosines[:, None].numpy())


@torch.no_grad()
def logit_lens(W_dec: Float[Tensor, "F d_in"], lm: LanguageModel, n: int) -> LogitLens:
    """The ``n`` tokens at either end of each decoder row's logits."""
    tokens, logits, histograms = [], [], []
    with progress("logit lens", len(W_dec), "features") as advance:
        for rows in W_dec.detach().split(_ROWS_AT_ONCE):
            found = unembed(lm, rows.to(lm.device))
            top, bottom = found.topk(n, dim=1), found.topk(n, dim=1, largest=False)
            tokens.append(torch.stack([top.indices, bottom.indices], dim=1).cpu())
            logits.append(torch.stack([top.values, bottom.values], dim=1).cpu())
            histograms.append(_histogram(found).cpu())
            advance(len(rows))
    return LogitLens(*(torch.cat(part).numpy() for part in (tokens, logits, histograms)))


def _histogram(rows: Float[Tensor, "t V"]) -> Int[Tensor, "t bins"]:
    low, high = rows.aminmax(dim=1, keepdim=True)
    step = ((rows - low) * (LOGIT_BINS / (high - low).clamp_min(1e-30))).long().clamp_(max=LOGIT_BINS - 1)
    step += LOGIT_BINS * torch.arange(len(rows), device=rows.device)[:, None]
    return torch.bincount(step.flatten(), minlength=LOGIT_BINS * len(rows)).view(len(rows), LOGIT_BINS)
