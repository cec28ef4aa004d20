"""Small worlds, and SAEs made by hand for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.masks import RandomHardMaskConfig
from scansion.sae import SAE, ReluConfig, SAEMetadata, build_sae
from scansion.synth import PlantedDictionary, SynthConfig, plant_store, planted_identity

# So few features in so many dimensions that a threshold reads them off almost without error.
EASY = SynthConfig(
    d_in=256, n_features=48, context_length=16, n_contexts=512, n_held_out_contexts=512, mean_l0=1.5, noise=0.02,
    amplitude_spread=0.05, correlation=0, band_width=(2, 8), zipf_exponent=0.2,
    max_probability=0.9,
)  # fmt: skip


def metadata_of(planted: PlantedDictionary, **changes: object) -> SAEMetadata:
    """What an SAE trained on the world would carry."""
    identity = planted_identity(planted.config, "train")
    return SAEMetadata(
        model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
        contexts=identity.contexts, context_length=identity.context_length, use_position_0=True, input_scale=1.0,
        steps=5, tokens=50, seed=0, training={},
    ).model_copy(update=changes)  # fmt: skip


def sae_from(directions: torch.Tensor, length: int, mask: torch.Tensor | None = None, threshold: float = 0.5) -> SAE:
    """A ReLU SAE whose decoder rows are ``directions``; with ``mask`` [L, d_sae], a hard mask of just that table."""
    mask_settings = {} if mask is None else {"mask": RandomHardMaskConfig()}
    config = ReluConfig(d_sae=len(directions), **mask_settings)
    sae = build_sae(config, directions.shape[1], length, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.fill_(-threshold)
        if mask is not None:
            sae.mask.load_state_dict({"open": mask})
    return sae


def planted_sae(planted: PlantedDictionary) -> SAE:
    """The truth itself, with masks that allow each feature where its profile is not zero."""
    return sae_from(planted.directions, planted.config.context_length, planted.profiles > 0)


def subject_of(sae: SAE, planted: PlantedDictionary, name: str = "sae", **changes: object) -> LoadedSAE:
    return LoadedSAE(name, sae, metadata_of(planted, **changes))


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlantedDictionary, ActivationStore]:
    """A half-bound easy world and its held-out store."""
    planted = PlantedDictionary.plant(EASY)
    return planted, plant_store(planted, "held_out", tmp_path_factory.mktemp("easy"))


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., tuple[PlantedDictionary, ActivationStore]]:
    """``make_world(split, **changes)``: the easy world with other settings, and one of its stores."""

    def make(split: str = "held_out", **changes: object) -> tuple[PlantedDictionary, ActivationStore]:
        planted = PlantedDictionary.plant(SynthConfig(**{**EASY.model_dump(), **changes}))
        return planted, plant_store(planted, split, tmp_path / planted_identity(planted.config, split).contexts)

    return make
