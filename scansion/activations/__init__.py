"""Activations that keep their position: harvested once into a store on disk, then streamed to training and evaluation."""

from scansion.activations.batch import PositionedBatch
from scansion.activations.harvest_plan import HarvestConfig, HarvestPlan, check_harvests
from scansion.activations.harvesting import harvest, harvest_together
from scansion.activations.on_the_fly import OnTheFlyStream, TextStore
from scansion.activations.outliers import TokenExclusion
from scansion.activations.store import ActivationStore, StoreManifest
from scansion.activations.stream import ActivationStream

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "HarvestConfig",
    "HarvestPlan",
    "OnTheFlyStream",
    "PositionedBatch",
    "StoreManifest",
    "TextStore",
    "TokenExclusion",
    "check_harvests",
    "harvest",
    "harvest_together",
]
