"""Which features fire on the same tokens."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from scansion.report.features.directions import Neighbours

_MOST_PAIRS = 2e8
_ROWS_AT_ONCE = 1024


def keep_every(n_firings: float, n_tokens: int) -> int:
    """1, or where features fire so often that counting all pairs would take minutes, n: every n-th token is then enough."""
    return max(1, math.ceil(n_firings**2 / max(n_tokens, 1) / _MOST_PAIRS))


def firing_together(
    token: Int[np.ndarray, "m"], feature: Int[np.ndarray, "m"], n_tokens: int, n_features: int, n: int
) -> Neighbours:
    """The ``n`` features that share most tokens with each, by ``|both| / |either|``; its ``cosines`` hold these shares.

    Features that share fewer than two tokens are left out: -1 stands in their place, with a share of 0.

    Args:
        token, feature: of each firing.
        n_tokens, n_features: how many there are.
        n: see above.
    """
    n = min(n, n_features - 1)
    fired = csr_array((np.ones(len(token), dtype=np.int32), (token, feature)), shape=(n_tokens, n_features)).tocsc()
    by_feature = fired.T.tocsr()
    totals = np.bincount(feature, minlength=n_features)
    features = np.full((n_features, n), -1, dtype=np.int64)
    shares = np.zeros((n_features, n))
    for start in range(0, n_features if n else 0, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n_features))
        both = (by_feature[rows] @ fired).tocsr()
        for row in range(both.shape[0]):
            at = slice(both.indptr[row], both.indptr[row + 1])
            others, shared = both.indices[at], both.data[at]
            counts = (others != start + row) & (shared > 1)
            others, shared = others[counts], shared[counts]
            share = shared / (totals[start + row] + totals[others] - shared)
            best = np.lexsort((others, -share))[:n]
            features[start + row, : len(best)], shares[start + row, : len(best)] = others[best], share[best]
    return Neighbours(features, shares)
