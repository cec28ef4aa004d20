"""How much variance the attention sink alone explains, reported separately so that it never inflates a result."""

from __future__ import annotations

from scansion.activations import ActivationStore
from scansion.evals.statistics import finite


def sink_fve(store: ActivationStore) -> float | None:
    """Share of the variance of all tokens, position 0 included, that a dictionary with one feature explains.

    The feature fires at position 0 alone and turns the mean of the other positions into the mean at position 0 (the
    sink). Variance is ``sum |x - mean x|^2``; the feature leaves the variance within position 0 and within the rest, so
    that it explains ``n_0 n_1 / n * |mean_0 - mean_1|^2``. Closed form, from the store's own sums. A dictionary that is
    scored with position 0 counted starts from this figure, not from 0. None if position 0 is all there is.
    """
    count, mean = store.count.double(), store.mean.nan_to_num()
    n, n_sink = float(count.sum()), float(count[0])
    n_rest = n - n_sink
    if n_sink == 0 or n_rest == 0:
        return None
    sums = mean * count[:, None]
    squares = float((store.mean_square.nan_to_num() * count).sum())
    total = squares - float(sums.sum(dim=0).square().sum()) / n
    between = n_sink * n_rest / n * float((mean[0] - sums[1:].sum(dim=0) / n_rest).square().sum())
    return finite(between / total) if total > 0 else None
