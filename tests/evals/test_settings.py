"""What an SAE was trained with is the default of every evaluation; a difference is said, and a mixture refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals import LoadedSAE, evaluations
from scansion.evals.base import EvalResult
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.interp.offline import OfflineInterpConfig, evaluate_offline_interp
from scansion.evals.position import PositionConfig, evaluate_position
from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.reading.training import CountsPositions, ReadsTexts, as_trained
from scansion.evals.suites.config import SuiteConfig
from scansion.pipeline.evaluate import evaluate
from scansion.records import read_json, write_json
from scansion.sae import ReluConfig, SAEMetadata, build_sae, save_sae
from tests.conftest import WIDTH

LENGTH = 8
FEW_DRAWS = {"groups": 6, "null_draws": 20, "max_null_draws": 200, "mask_draws": 1, "replaced_contexts": 0}


@pytest.fixture
def subject(store: ActivationStore):
    """``subject(name, use_position_0)``: an SAE of the store, trained with or without position 0."""
    identity = store.identity

    def make(name: str, use_position_0: bool, context_length: int = LENGTH) -> LoadedSAE:
        sae = build_sae(ReluConfig(d_sae=2 * WIDTH), WIDTH, context_length, torch.Generator().manual_seed(0)).eval()
        metadata = SAEMetadata(
            model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point,
            store_key="k", contexts="c", context_length=context_length, use_position_0=use_position_0, input_scale=1.0,
            steps=5, tokens=50, seed=0, training={},
        )  # fmt: skip
        return LoadedSAE(name, sae, metadata)

    return make


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("scansion.evals.reading.training.say", lines.append)
    return lines


def measured(kind: str, sae: LoadedSAE, store: ActivationStore, **settings: bool) -> EvalResult:
    if kind == "core":
        return evaluate_core([sae], store, None, CoreConfig(loss_contexts=0, **settings))[0]
    if kind == "position":
        return evaluate_position([sae], store, None, PositionConfig.model_validate(FEW_DRAWS | settings))[0][0]
    return evaluate_offline_interp([sae], store, OfflineInterpConfig(n_features=8, **settings))[0]


@pytest.mark.parametrize("kind", ["core", "position", "autointerp_offline"])
def test_position_0_counts_if_it_was_trained_on(store, subject, said: list[str], kind: str) -> None:
    for trained in (False, True):
        sae = subject("a", trained)
        by_default, as_set = measured(kind, sae, store), measured(kind, sae, store, use_position_0=trained)
        assert by_default == as_set, "results are those of the setting written out, and so is their data"
        assert by_default.data["config"]["use_position_0"] is trained
        if kind != "autointerp_offline":
            assert by_default.model_dump()["positions"][0] == 1 - trained
    assert not said


def test_a_setting_that_differs_from_training_is_said_in_one_line(store, subject, said: list[str]) -> None:
    result = measured("core", subject("a", False), store, use_position_0=True)
    assert said == ["core: use_position_0 is set to True, which differs from training (a: False)"]
    assert result.data["config"]["use_position_0"] is True and result.sae_metadata.use_position_0 is False


def test_saes_trained_differently_are_refused_unless_it_is_set(store, subject, said: list[str]) -> None:
    both = [subject("a", True), subject("b", False)]
    with pytest.raises(
        EvalError, match=r"^core: .* different use_position_0 \(a: True, b: False\); .* set use_position_0"
    ):
        evaluate_core(both, store, None, CoreConfig(loss_contexts=0))
    one, two = evaluate_core(both, store, None, CoreConfig(loss_contexts=0, use_position_0=True))
    assert one.positions == two.positions == list(range(LENGTH)) and len(said) == 1
    other = [subject("a", False), subject("b", False, context_length=16)]
    with pytest.raises(EvalError, match=r"^sparse_probing: .* different context_length \(a: 8, b: 16\)"):
        as_trained(SparseProbingConfig(), other)
    assert as_trained(SparseProbingConfig(context_length=4), other).text_length == 4


def test_every_evaluation_follows_training(subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_MODEL", "judge")
    following: set[str] = set()
    for kind in evaluations.configs():
        if issubclass(kind, SuiteConfig):
            continue  # the suites of others read texts of a length of their own
        fields = kind.model_fields.keys() & {"use_position_0", "context_length"}
        filled = as_trained(kind(), [subject("a", True, context_length=32)])
        if fields:
            assert issubclass(kind, CountsPositions | ReadsTexts)
            assert filled == kind.model_validate(
                {name: {"use_position_0": True, "context_length": 32}[name] for name in fields}
            )
            following.add(kind.evaluation)
    assert following >= {"core", "position", "autointerp", "autointerp_offline", "sparse_probing", "scr", "tpp"}


def test_a_setting_that_was_not_filled_in_is_an_error() -> None:
    with pytest.raises(EvalError, match="use_position_0 follows the SAE's training"):
        _ = CoreConfig().counts_position_0


@pytest.mark.parametrize("trained", [False, True])
def test_results_with_every_setting_written_out_are_found_again(
    tmp_path: Path, store, subject, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    sae = subject("run", trained)
    save_sae(sae.sae, tmp_path / "sae", sae.metadata)
    old = evaluations.parse_all({"core": {"loss_contexts": 0, "use_position_0": trained}})
    (first,) = evaluate({"run": tmp_path}, old, store, lambda: pytest.fail("the LM was asked for"))
    file = tmp_path / "evals" / "core.json"
    marked = {**read_json(file), "notes": ["of an earlier run"]}
    write_json(file, marked)
    now = evaluations.parse_all({"core": {"loss_contexts": 0}})
    (again,) = evaluate({"run": tmp_path}, now, store, lambda: pytest.fail("the LM was asked for"))
    assert again.core.notes == ["of an earlier run"] and again.core.fve == first.core.fve
    other = evaluations.parse_all({"core": {"loss_contexts": 0, "use_position_0": not trained}})
    (measured_again,) = evaluate({"run": tmp_path}, other, store, lambda: pytest.fail("the LM was asked for"))
    assert measured_again.core.notes == []
    assert replace(sae, name="x").fingerprint == first.core.sae_fingerprint
