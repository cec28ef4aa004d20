"""From text to stores, runs and results: what the command line, experiment.py and studies share."""

from scansion.pipeline.compiling import compile_run
from scansion.pipeline.existing import ExistingSpec
from scansion.pipeline.planted import PlantedSpec, Source
from scansion.pipeline.stores import HarvestSpec, Stores, build_stores, build_stores_at

__all__ = [
    "ExistingSpec",
    "HarvestSpec",
    "PlantedSpec",
    "Source",
    "Stores",
    "build_stores",
    "build_stores_at",
    "compile_run",
]
