"""Banded execution: one small matrix product a band of positions in place of one large, mostly masked product.

With G equal bands the encoder and decoder take G times fewer operations than the dense masked form, whose numbers they
reproduce to rounding. The batch must be grouped by position, positions ascending.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.readings import Reading

# The positions of a stream are the same at every step.
_listed: Reading[list[int]] = Reading(lambda positions: positions.tolist())


@dataclass(frozen=True)
class BandRows:
    """Where one band's tokens and features are.

    Attributes:
        rows: the band's rows of the batch's position axis.
        block: the features it owns, as a range of d_sae; shared features come before all blocks.
    """

    rows: slice
    block: slice

    def pieces(self, n_shared: int) -> tuple[slice, ...]:
        """The same features as ranges of d_sae: the shared ones, if there are any, then its own."""
        return (self.block,) if n_shared == 0 else (slice(0, n_shared), self.block)

    def features(self, n_shared: int, device: torch.device | None = None) -> Int[Tensor, "w"]:
        """Indices of the features its tokens may use: the shared ones, then its own."""
        own = torch.arange(self.block.start, self.block.stop, device=device)
        return torch.cat([torch.arange(n_shared, device=device), own])


def rows_of_bands(
    positions: Int[Tensor, "P"], edges: tuple[int, ...], n_shared: int, sizes: tuple[int, ...]
) -> list[BandRows]:
    """Split a batch's rows among the bands.

    Args:
        positions: ascending, one a row.
        edges: band g holds positions edges[g] to edges[g + 1] (exclusive).
        n_shared: features before the first block.
        sizes: features each band owns.
    """
    cuts = [bisect_left(_listed(positions), edge) for edge in edges]
    starts = [n_shared]
    for size in sizes:
        starts.append(starts[-1] + size)
    return [BandRows(slice(cuts[g], cuts[g + 1]), slice(starts[g], starts[g + 1])) for g in range(len(sizes))]


def banded_encode(
    x: Float[Tensor, "P n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    bands: list[BandRows],
    n_shared: int,
) -> list[Float[Tensor, "_ n _"]]:
    """``x @ W_enc + b_enc`` for each band: its rows, and of the columns only the shared ones and its own."""
    # split, whose backward is one concatenation; slices would each send back a gradient of full size.
    sizes = [n_shared, *(band.block.stop - band.block.start for band in bands)]
    # The encoder lies in memory feature by feature, and so should its gradient.
    shared_W, *weights = (rows.T for rows in W_enc.T.split(sizes))
    shared_b, *biases = b_enc.split(sizes)
    products = [
        torch.addmm(b, x[band.rows].flatten(0, 1), W).view(*x[band.rows].shape[:2], W.shape[1])
        for band, W, b in zip(bands, weights, biases, strict=True)
    ]
    if n_shared == 0:
        return products
    common = torch.addmm(shared_b, x.flatten(0, 1), shared_W).view(*x.shape[:2], n_shared)
    return [torch.cat([common[band.rows], own], dim=-1) for band, own in zip(bands, products, strict=True)]


def banded_decode(
    acts: list[Float[Tensor, "_ n _"]], W_dec: Float[Tensor, "d_sae d_in"], bands: list[BandRows], n_shared: int
) -> Float[Tensor, "P n d_in"]:
    """``acts @ W_dec``, rows of the bands put together again."""
    sizes = [n_shared, *(band.block.stop - band.block.start for band in bands)]
    shared_W, *weights = W_dec.split(sizes)
    parts = [a[..., n_shared:] @ W for a, W in zip(acts, weights, strict=True)]
    if n_shared == 0:
        return torch.cat(parts)
    return torch.cat([a[..., :n_shared] for a in acts]) @ shared_W + torch.cat(parts)
