"""Every evaluation works with SAEs and the language model on another device, and gives the figures it gives on the CPU."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from scansion.activations import ActivationStore
from scansion.evals import LoadedSAE, evaluations
from scansion.evals.absorption.evaluate import AbsorptionConfig, measure
from scansion.evals.absorption.first_letters import LETTERS, SpelledWords, Word
from scansion.evals.causal.evaluate import PositionCausalConfig, evaluate_position_causal
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.interp.offline import OfflineInterpConfig, evaluate_offline_interp
from scansion.evals.position import PositionConfig, evaluate_position
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.untrained import random_controls
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.evals.recovery import evaluate_recovery
from scansion.evals.unlearning.answering import answer, clamp, firing_rates
from scansion.evals.unlearning.questions import Question
from scansion.execution.sparse import encode_sparse
from scansion.lm import HookPoint, LanguageModel
from scansion.masks import BandMaskConfig, SoftMaskConfig
from scansion.pipeline.evaluate import evaluate
from scansion.report.features import FeatureConfig, gather_features, logit_lens, nearest_features
from scansion.report.maps import maps_of
from scansion.sae import SAE, JumpReluConfig, ReluConfig, SAEMetadata, TopKConfig, build_sae, load_sae, save_sae
from tests.conftest import WIDTH
from tests.evals.probing.constructed import telling_texts
from tests.fake_device import fake_device
from tests.masks.families import ARCHITECTURES, EVERYWHERE, FAMILIES, make_sae, some_x
from tests.planted import easy, planted_sae, subject_of

__all__ = ["easy"]  # a fixture

L, D_SAE, POINT = 8, 26, HookPoint(1)
KINDS = [
    TopKConfig(d_sae=D_SAE, k=5),
    TopKConfig(d_sae=D_SAE, k=5, mask=BandMaskConfig(count=2, shared=0.25)),
    ReluConfig(d_sae=D_SAE, mask=SoftMaskConfig()),
    JumpReluConfig(d_sae=D_SAE),
]
TEXTS = [text for text, _ in telling_texts(12, longest=L - 1)]
WORDS = [Word(i, LETTERS[i % 26], i % 26) for i in range(208)]
QUESTIONS = [Question("w5 w6", ("w7", "w8"), 0), Question("w9 w10 w11", ("w12", "w13 w14"), 1)]
CAUSAL = PositionCausalConfig(n_features=3, n_contexts=8, min_firings=5, lm_batch_size=5)
POSITION = PositionConfig(groups=6, null_draws=20, max_null_draws=200, mask_draws=1, replaced_contexts=20)


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with fake_device(request.param, monkeypatch) as device:
        yield device


def metadata_of(store: ActivationStore) -> SAEMetadata:
    identity = store.identity
    return SAEMetadata(
        model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
        contexts="c", context_length=L, use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=3,
        training={"lr": 1.0},
    )  # fmt: skip


def subjects_of(store: ActivationStore, device: torch.device) -> list[LoadedSAE]:
    saes = [build_sae(kind, WIDTH, L, torch.Generator().manual_seed(3)).eval().to(device) for kind in KINDS]
    assert all(tensor.device == device for sae in saes for tensor in sae.state_dict().values())
    return [LoadedSAE(f"sae {index}", sae, metadata_of(store)) for index, sae in enumerate(saes)]


def pooled(saes: list[LoadedSAE], store: ActivationStore, lm: LanguageModel) -> Any:
    reader = TextReader(lm, POINT, L, 8, "float32", ActivationCache(Path("nowhere"), 0))
    kinds, _ = random_controls(saes, 0)
    controls = [control for draws in kinds for control in draws]
    return [pool_texts(TEXTS, reader, [one.sae for one in saes], controls, name, 2) for name in ("mean", "bands")]


def absorption(saes: list[LoadedSAE], store: ActivationStore, lm: LanguageModel) -> Any:
    """Letters along random directions, which features detect in part."""
    directions = np.random.default_rng(0).normal(size=(26, WIDTH))
    x = torch.from_numpy(directions[[word.letter for word in WORDS]]).float()
    spelled = SpelledWords(WORDS, np.arange(len(WORDS)) >= 130, x, 3, 1.0, 20)
    scores = np.where(np.eye(26)[spelled.letters[130:]].T > 0, 1.0, -1.0)
    config = AbsorptionConfig(min_feature_f1=0, max_k=1)
    return [measure(one, spelled, directions, scores, config) for one in saes[1:2]]


def unlearning(saes: list[LoadedSAE], store: ActivationStore, lm: LanguageModel) -> Any:
    rates = firing_rates(TEXTS, lm, POINT, [one.sae for one in saes], L, 4)
    changes = [None, *(clamp(one.sae, np.arange(9), -20.0) for one in saes)]
    return rates, [answer(lm, POINT, QUESTIONS, 3, change) for change in changes]


def features(saes: list[LoadedSAE], store: ActivationStore, lm: LanguageModel) -> Any:
    gathered = [gather_features(one, store, FeatureConfig(examples=4, batch_contexts=7)) for one in saes]
    maps = [maps_of(one, store, {"firing": of.profile.rates}) for one, of in zip(saes, gathered, strict=True)]
    rows = [one.sae.W_dec for one in saes]
    return gathered, maps, [nearest_features(row, 3) for row in rows], [logit_lens(row, lm, 4) for row in rows]


MEASURED: dict[str, Callable[[list[LoadedSAE], ActivationStore, LanguageModel], Any]] = {
    "core": lambda saes, store, lm: evaluate_core(saes, store, lambda: lm, CoreConfig(loss_contexts=8)),
    "position": lambda saes, store, lm: evaluate_position(saes, store, lambda: lm, POSITION),
    "position_causal": lambda saes, store, lm: evaluate_position_causal(saes, store, lm, CAUSAL),
    "offline": lambda saes, store, lm: evaluate_offline_interp(saes, store, OfflineInterpConfig(n_features=8)),
    "pooled": pooled,
    "absorption": absorption,
    "unlearning": unlearning,
    "features": features,
}


def same(there: Any, here: Any, where: str = "") -> None:
    """The same figures, but for rounding: other kernels add up in another order."""
    if isinstance(here, BaseModel):
        there, here = dict(there), dict(here)
    elif dataclasses.is_dataclass(here):
        there, here = vars(there), vars(here)
    if isinstance(here, dict):
        assert there.keys() == here.keys(), where
        for key in here:
            same(there[key], here[key], f"{where}.{key}")
    elif isinstance(here, list | tuple):
        assert len(there) == len(here), where
        for index, (one, other) in enumerate(zip(there, here, strict=True)):
            same(one, other, f"{where}[{index}]")
    elif isinstance(here, float | np.ndarray):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5, err_msg=where)
    elif hasattr(here, "toarray"):
        same(there.toarray(), here.toarray(), where)
    else:
        assert there == here, where


@pytest.mark.parametrize("name", MEASURED)
def test_figures_are_the_same_on_any_device(store, lm: LanguageModel, device: torch.device, name: str) -> None:
    here = MEASURED[name](subjects_of(store, torch.device("cpu")), store, lm)
    there = LanguageModel(copy.deepcopy(lm.model).to(device), lm.tokenizer, lm.facts)
    assert there.device == device
    same(MEASURED[name](subjects_of(store, device), store, there), here)


def test_recovery_is_the_same_on_any_device(easy, device: torch.device) -> None:
    planted, held_out = easy
    here = evaluate_recovery([subject_of(planted_sae(planted), planted)], planted, held_out)
    there = evaluate_recovery([subject_of(planted_sae(planted).to(device), planted)], planted, held_out)
    same(there[0].model_dump(), {**here[0].model_dump(), "sae_fingerprint": there[0].sae_fingerprint})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_sae_encodes_and_decodes_on_any_device(device: torch.device, family: str, architecture: str) -> None:
    sae, x, positions = make_sae(architecture, FAMILIES[family]).eval(), some_x(), EVERYWHERE[:, None]
    moved, x_there, places = copy.deepcopy(sae).to(device), x.to(device), positions.to(device)
    acts, there = sae.encode(x, positions), moved.encode(x_there, places)
    x_hat, x_hat_there = sae.decode(acts, positions), moved.decode(there, places)
    entries = encode_sparse(moved, x_there, places)
    assert {there.device, x_hat_there.device, device if entries is None else entries.values.device} == {device}
    torch.testing.assert_close(there.cpu(), acts)
    torch.testing.assert_close(x_hat_there.cpu(), x_hat)


@pytest.mark.parametrize("named", [True, False])
def test_saes_go_to_the_device_that_is_named_or_there(
    store, tmp_path: Path, device: torch.device, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda if device.type == "cuda" else torch.backends.mps, "is_available", lambda: True)
    save_sae(build_sae(KINDS[0], WIDTH, L, torch.Generator().manual_seed(3)), tmp_path / "sae", metadata_of(store))
    used: list[torch.device] = []

    def load(folder: Path, place: torch.device) -> tuple[SAE, SAEMetadata]:
        sae, metadata = load_sae(folder, place)
        used.append(sae.W_dec.device)
        return sae, metadata

    monkeypatch.setattr("scansion.pipeline.evaluate.load_sae", load)
    configs = evaluations.parse_all({"core": {"loss_contexts": 0}})
    evaluate({"run": tmp_path}, configs, store, lambda: pytest.fail("the LM was asked for"), *[device.type] * named)
    assert used == [device]
