"""Retention band by band: which positions' features keep to their positions when the mask is lifted."""

from __future__ import annotations

from itertools import pairwise

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
    starts = bands.shared + np.cumsum([0, *bands.sizes])
    blocks = [slice(int(start), int(end)) for start, end in pairwise(starts)]
    # The others have no features, or none of their positions was used.
    used = [number for number, block in enumerate(blocks) if weights[:, block].any()]

    def of_each(group: int | None) -> list[float]:
        profile = firing.without(group)
        return [mass_weighted_retention(weights[:, blocks[number]], profile.of(blocks[number])) for number in used]

    value, whole = of_each(None), firing.without(None)
    without = np.array([of_each(group) for group in range(firing.text.n_groups)])
    found: list[BandRetention] = []
    for index, number in enumerate(used):
        kept = retention(weights[:, blocks[number]], whole.of(blocks[number]))
        known = kept[np.isfinite(kept)]
        found.append(
            BandRetention(
                first=bands.edges[number],
                last=bands.edges[number + 1] - 1,
                n_alive=len(known),
                retention=Jackknife(value[index], without[:, index]).estimate(),
                retention_median=finite(np.median(known)) if len(known) else None,
            )
        )
    return found
