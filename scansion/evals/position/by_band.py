"""Retention band by band: which positions' features keep to their positions when the mask is lifted."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from scansion.evals.position.agreement import mass_weighted_retention, retention
from scansion.evals.position.firing import Firing
from scansion.evals.reading.groups import Jackknife
from scansion.evals.statistics import Estimate, finite
from scansion.masks.gate import Bands


class BandRetention(BaseModel):
    """Retention of the features bound to one band; a mean over all of them may hide that only one band's features keep to it.

    Attributes:
        first, last: positions of the band, both inclusive; some may not have been used.
        n_alive: features of the band that fired.
        retention: share of their activation mass inside the band beyond chance, weighted by mass.
        retention_median: over these features; None if none fired.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int
    last: int
    n_alive: int
    retention: Estimate
    retention_median: float | None


def retention_by_band(bands: Bands, weights: Float[np.ndarray, "P F"], firing: Firing) -> list[BandRetention]:
    """Retention of each band that has features of its own and positions that were used, in the order of positions.

    Args:
        bands: of the mask.
        weights: the mask at the positions used.
        firing: with the mask lifted.
    """
    found: list[BandRetention] = []
    start = bands.shared
    for first, end, size in zip(bands.edges[:-1], bands.edges[1:], bands.sizes, strict=True):
        of_band = slice(start, start + size)
        start += size
        if not weights[:, of_band].any():  # it has no features, or none of its positions was used
            continue
        kept = retention(weights[:, of_band], firing.without(None).of(of_band))
        known = kept[np.isfinite(kept)]
        over_text = Jackknife.of(
            firing.text.n_groups,
            lambda group, chosen=of_band: mass_weighted_retention(weights[:, chosen], firing.without(group).of(chosen)),
        )
        found.append(
            BandRetention(
                first=first,
                last=end - 1,
                n_alive=len(known),
                retention=over_text.estimate(),
                retention_median=finite(np.median(known)) if len(known) else None,
            )
        )
    return found
