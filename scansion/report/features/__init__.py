"""Feature pages: what each feature of a trained SAE does on held-out text, ready to be looked up in a page."""

from scansion.report.features.directions import (
    LogitLens,
    Neighbours,
    largest_entries,
    logit_lens,
    nearest_features,
    nearest_in,
)
from scansion.report.features.gathering import FeatureConfig, Features, gather_features, specialisation
from scansion.report.features.packing import FeaturePages, pack_features

__all__ = [
    "FeatureConfig",
    "FeaturePages",
    "Features",
    "LogitLens",
    "Neighbours",
    "gather_features",
    "largest_entries",
    "logit_lens",
    "nearest_features",
    "nearest_in",
    "pack_features",
    "specialisation",
]
