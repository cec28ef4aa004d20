"""Further evaluations by name: refused before anything heavy, kept in the run's folder, not done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.errors import ConfigError, EvalError
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.position import PositionConfig, evaluate_position
from scansion.evals.recovery.evaluate import SyntheticConfig, evaluate_synthetic
from scansion.files import read_json
from scansion.pipeline.extras import EXTRAS, check_store, evaluate_extras, lines, parse_extras
from scansion.sae import ReluConfig, SAEMetadata, build_sae, load_sae, save_sae
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from tests.evals.probing.constructed import make_subject


def test_names_and_settings_are_checked(tmp_path: Path) -> None:
    assert parse_extras("") == {}
    assert list(parse_extras(" tpp, absorption ")) == ["tpp", "absorption"]
    settings = tmp_path / "settings.yaml"
    settings.write_text("absorption: {examples: 7}")
    assert parse_extras("absorption", settings)["absorption"].model_dump()["examples"] == 7
    settings.write_text("absorption: {example: 7}")
    for names, file, what in (
        ("absorbtion", None, "no evaluation is called absorbtion; there are absorption"),
        ("absorption", settings, "absorption: example: Extra inputs"),
        ("tpp", settings, "should hold settings of tpp"),
        ("tpp", tmp_path / "none.yaml", "there is no settings file"),
    ):
        with pytest.raises(ConfigError, match=what):
            parse_extras(names, file)


def test_an_evaluation_wrong_as_a_whole_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(
        ConfigError, match=r"^autointerp: settings: autointerp asks a language model: set OPENAI_BASE_URL"
    ):
        parse_extras("autointerp")


def test_what_a_store_cannot_answer_is_refused_before_anything_heavy(tmp_path: Path, store) -> None:
    with pytest.raises(ConfigError, match="whose true features nobody knows"):
        check_store(store, ["synthetic"], CoreConfig(), probing=True)
    check_store(store, ["tpp"], CoreConfig(), probing=True)
    world = SynthConfig(
        d_in=16,
        n_features=16,
        context_length=8,
        n_contexts=64,
        n_held_out_contexts=64,
        band_width=(2, 4),
        mean_l0=1,
        zipf_exponent=0,
    )
    planted = plant_store(PlantedDictionary.plant(world), "held_out", tmp_path / "held_out")
    with pytest.raises(ConfigError, match=r"--core.loss-contexts 0; --no-probing; leave out tpp$"):
        check_store(planted, ["tpp", "synthetic"], CoreConfig(), probing=True)
    check_store(planted, ["synthetic"], CoreConfig(loss_contexts=0), probing=False)


def test_results_carry_the_name_they_are_asked_for_by() -> None:
    for name, extra in EXTRAS.items():
        assert extra.result.model_fields["eval"].default == name


def perfect_sae(planted: PlantedDictionary):
    """Its decoder rows are the planted directions."""
    config = planted.config
    sae = build_sae(
        ReluConfig(d_sae=config.n_features), config.d_in, config.context_length, torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        sae.W_dec.copy_(planted.directions)
        sae.W_enc.copy_(planted.directions.T)
    return sae


def test_synthetic_runs_are_scored_against_the_world_their_store_names(tmp_path: Path, store) -> None:
    planted = PlantedDictionary.plant(
        SynthConfig(
            d_in=16,
            n_features=16,
            context_length=8,
            n_contexts=64,
            n_held_out_contexts=64,
            band_width=(2, 4),
            mean_l0=1,
            zipf_exponent=0,
        )
    )
    held_out = plant_store(planted, "held_out", tmp_path / "held_out")
    identity = held_out.identity
    metadata = SAEMetadata(
        model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
        contexts="c", context_length=8, use_position_0=True, input_scale=1.0, steps=5, tokens=50, seed=0, training={},
    )  # fmt: skip
    save_sae(perfect_sae(planted), tmp_path / "run" / "sae", metadata)

    def no_lm():
        pytest.fail("the LM was asked for")

    extras = parse_extras("synthetic,autointerp_offline")
    first = evaluate_extras(extras, {"run": tmp_path / "run"}, held_out, no_lm)
    subject = LoadedSAE("run", *load_sae(tmp_path / "run" / "sae"))
    ((position, _),) = evaluate_position([subject], held_out, no_lm, PositionConfig(use_position_0=True))
    assert position.replacement is None and "no language model can read moved text" in str(position.no_replacement)
    assert first[0].headline()["mmcs"] == pytest.approx(1.0, abs=1e-5)
    assert first[0].headline()["recovered"] == 1.0 > first[0].headline()["mmcs_chance"]
    assert read_json(tmp_path / "run" / "evals" / "synthetic.json")["eval"] == "synthetic"
    assert evaluate_extras(extras, {"run": tmp_path / "run"}, held_out, no_lm) == first
    printed = lines(first)
    assert printed[0].startswith("synthetic: run: mmcs 1.000") and printed[1].startswith("  note: ")
    with pytest.raises(EvalError, match="whose true features nobody knows"):
        evaluate_synthetic([make_subject()], store, SyntheticConfig())
    assert LoadedSAE("run", perfect_sae(planted), metadata).fingerprint == first[0].sae_fingerprint
