"""What position does to a dictionary: how firing depends on it, with the controls that make the answer mean something."""

from scansion.evals.position.baseline import OverUnmasked, excess_over_unmasked
from scansion.evals.position.config import PositionConfig
from scansion.evals.position.evaluate import check_position, evaluate_position
from scansion.evals.position.localised import Localised, localised_features
from scansion.evals.position.moving import offset_for
from scansion.evals.position.profiles import load_profiles, save_profiles
from scansion.evals.position.result import PositionResult

__all__ = [
    "Localised",
    "OverUnmasked",
    "PositionConfig",
    "PositionResult",
    "check_position",
    "evaluate_position",
    "excess_over_unmasked",
    "load_profiles",
    "localised_features",
    "offset_for",
    "save_profiles",
]
