"""Scansion: position-aware sparse autoencoders on language-model activations.

Everything a script needs, from text to a score, can be imported from here. Each name is loaded when first used, so
``import scansion`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scansion.activations import ActivationStore as ActivationStore
    from scansion.activations import ActivationStream as ActivationStream
    from scansion.activations import HarvestConfig as HarvestConfig
    from scansion.activations import PositionedBatch as PositionedBatch
    from scansion.activations import TextStore as TextStore
    from scansion.attaching import attach as attach
    from scansion.corpus import Contexts as Contexts
    from scansion.corpus import CorpusConfig as CorpusConfig
    from scansion.errors import ScansionError as ScansionError
    from scansion.evals.base import LoadedSAE as LoadedSAE
    from scansion.evals.core.evaluate import CoreConfig as CoreConfig
    from scansion.evals.core.evaluate import evaluate_core as evaluate_core
    from scansion.evals.probing.evaluate import SparseProbingConfig as SparseProbingConfig
    from scansion.evals.probing.evaluate import evaluate_sparse_probing as evaluate_sparse_probing
    from scansion.exploring import EncodedText as EncodedText
    from scansion.exploring import Excerpt as Excerpt
    from scansion.exploring import FeatureAt as FeatureAt
    from scansion.exploring import Matches as Matches
    from scansion.exploring import encode_text as encode_text
    from scansion.exploring import match as match
    from scansion.exploring import top_contexts as top_contexts
    from scansion.exploring import top_features as top_features
    from scansion.interop import ForeignSAE as ForeignSAE
    from scansion.interop import from_pretrained as from_pretrained
    from scansion.interop import push_to_hub as push_to_hub
    from scansion.interop import read_foreign as read_foreign
    from scansion.interop import write_saelens as write_saelens
    from scansion.lm import HookPoint as HookPoint
    from scansion.lm import activations_at as activations_at
    from scansion.lm import load_language_model as load_language_model
    from scansion.masks import AdaptiveMaskConfig as AdaptiveMaskConfig
    from scansion.masks import BandMaskConfig as BandMaskConfig
    from scansion.masks import HardMask as HardMask
    from scansion.masks import ImportanceMaskConfig as ImportanceMaskConfig
    from scansion.masks import LearntConfig as LearntConfig
    from scansion.masks import LearntMask as LearntMask
    from scansion.masks import MaskConfig as MaskConfig
    from scansion.masks import NoMaskConfig as NoMaskConfig
    from scansion.masks import PositionalMask as PositionalMask
    from scansion.masks import RandomHardMaskConfig as RandomHardMaskConfig
    from scansion.masks import SoftMaskConfig as SoftMaskConfig
    from scansion.masks import UsageBandMaskConfig as UsageBandMaskConfig
    from scansion.masks import build_mask as build_mask
    from scansion.masks import register_mask as register_mask
    from scansion.pipeline import HarvestSpec as HarvestSpec
    from scansion.pipeline import build_stores as build_stores
    from scansion.pipeline import build_stores_at as build_stores_at
    from scansion.plots import plot_firing as plot_firing
    from scansion.plots import plot_mask as plot_mask
    from scansion.report import FeatureConfig as FeatureConfig
    from scansion.report import runs_data as runs_data
    from scansion.report import study_data as study_data
    from scansion.report import summarise as summarise
    from scansion.report import write_report as write_report
    from scansion.sae import SAE as SAE
    from scansion.sae import BatchTopKConfig as BatchTopKConfig
    from scansion.sae import JumpReluConfig as JumpReluConfig
    from scansion.sae import ReluConfig as ReluConfig
    from scansion.sae import TopKConfig as TopKConfig
    from scansion.sae import load_sae as load_sae
    from scansion.sae import save_sae as save_sae
    from scansion.study import StudyPlan as StudyPlan
    from scansion.study import StudyRecord as StudyRecord
    from scansion.study import compare as compare
    from scansion.study import execute as execute
    from scansion.study import load_plan as load_plan
    from scansion.training import TrainingConfig as TrainingConfig
    from scansion.training import TrainingRun as TrainingRun
    from scansion.training import train as train

_HOMES = {
    "activations": "ActivationStore ActivationStream HarvestConfig PositionedBatch TextStore",
    "attaching": "attach",
    "corpus": "Contexts CorpusConfig",
    "errors": "ScansionError",
    "evals.core.evaluate": "CoreConfig evaluate_core",
    "evals.base": "LoadedSAE",
    "evals.probing.evaluate": "SparseProbingConfig evaluate_sparse_probing",
    "exploring": "EncodedText Excerpt FeatureAt Matches encode_text match top_contexts top_features",
    "interop": "ForeignSAE from_pretrained push_to_hub read_foreign write_saelens",
    "lm": "HookPoint activations_at load_language_model",
    "masks": "AdaptiveMaskConfig BandMaskConfig HardMask ImportanceMaskConfig LearntConfig LearntMask MaskConfig NoMaskConfig "
    "PositionalMask RandomHardMaskConfig SoftMaskConfig UsageBandMaskConfig build_mask register_mask",
    "pipeline": "HarvestSpec build_stores build_stores_at",
    "plots": "plot_firing plot_mask",
    "report": "FeatureConfig runs_data study_data summarise write_report",
    "sae": "SAE BatchTopKConfig JumpReluConfig ReluConfig TopKConfig load_sae save_sae",
    "study": "StudyPlan StudyRecord compare execute load_plan",
    "training": "TrainingConfig TrainingRun train",
}
_HOME_OF = {name: f"scansion.{module}" for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes 20 ms

        return version("scansion")
    if name not in _HOME_OF:
        raise AttributeError(f"scansion has no {name!r}{_nearest_names(name)}; dir(scansion) lists its names")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # so that Python does not call this function for the name again
    return value


def _nearest_names(name: str) -> str:
    """``: did you mean ...?`` where a public name resembles a wrong one, capitals apart; else nothing."""
    from difflib import get_close_matches

    by_lower = {each.lower(): each for each in _HOME_OF}
    near = get_close_matches(name.lower(), by_lower, n=2)
    return f"; did you mean {' or '.join(by_lower[each] for each in near)}?" if near else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, "__version__"})
