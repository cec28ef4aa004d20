"""Evaluations by name: refused before anything heavy, kept in the run's folder, not done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.cli.evaluating import parse_evaluations
from scansion.errors import ConfigError
from scansion.evals import LoadedSAE, evaluations, figures_in
from scansion.evals.position import PositionConfig, evaluate_position
from scansion.evals.recovery.evaluation import Synthetic, SyntheticConfig
from scansion.pipeline.evaluate import check_evaluations, evaluate
from scansion.records import read_json, write_json
from scansion.report import measured_table
from scansion.sae import ReluConfig, SAEMetadata, build_sae, load_sae, save_sae
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from tests.evals.probing.constructed import make_subject


def test_names_and_settings_are_checked(tmp_path: Path) -> None:
    assert list(parse_evaluations("")) == ["core"], "core is always run"
    assert list(parse_evaluations(" tpp, absorption ")) == ["core", "tpp", "absorption"]
    settings = tmp_path / "settings.yaml"
    settings.write_text("absorption: {examples: 7}")
    for given in (str(settings), "absorption: {examples: 7}"):
        assert parse_evaluations("absorption", given)["absorption"].model_dump()["examples"] == 7
    settings.write_text("absorption: {example: 7}")
    for names, given, what in (
        ("absorbtion", "", "no evaluation is called 'absorbtion'; did you mean absorption"),
        ("absorption", str(settings), "absorption: example: there is no such setting; did you mean examples?"),
        (
            "tpp",
            str(settings),
            "--settings names absorption, which --evaluations does not ask for; it asks for core, tpp",
        ),
        ("tpp", str(tmp_path / "none.yaml"), "there is no settings file"),
        ("tpp", "tpp: {n_values: [", "--settings is not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=what):
            parse_evaluations(names, given)


def test_an_evaluation_wrong_as_a_whole_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(
        ConfigError, match=r"^autointerp: settings: autointerp asks a language model: set OPENAI_BASE_URL"
    ):
        parse_evaluations("autointerp")


def test_what_a_store_cannot_answer_is_refused_before_anything_heavy(tmp_path: Path, store) -> None:
    with pytest.raises(ConfigError, match="whose true features are unknown"):
        check_evaluations(evaluations.parse_all({"synthetic": None}), store)
    check_evaluations(evaluations.parse_all({"tpp": None}), store)
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
    with pytest.raises(ConfigError, match=r"neither text nor a language model: leave out sparse_probing, tpp$"):
        check_evaluations(evaluations.parse_all({"sparse_probing": {}, "tpp": {}, "synthetic": {}}), planted)
    check_evaluations(evaluations.parse_all({"synthetic": {}}), planted)


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

    configs = evaluations.parse_all({"synthetic": {}, "autointerp_offline": {}})
    (first,) = evaluate({"run": tmp_path / "run"}, configs, held_out, no_lm)
    assert first.core.ce_loss is None, "planted activations have no language model"
    subject = LoadedSAE("run", *load_sae(tmp_path / "run" / "sae"))
    ((position, _),) = evaluate_position([subject], held_out, no_lm, PositionConfig(use_position_0=True))
    assert position.replacement is None and "no language model can read moved text" in str(position.no_replacement)
    synthetic = first.results["synthetic"]
    assert figures_in(synthetic)["mmcs"].value == pytest.approx(1.0, abs=1e-5)
    assert figures_in(synthetic)["recovered"].value == 1.0 > figures_in(synthetic)["mmcs_chance"].value
    assert first.means()["mmcs"] == figures_in(synthetic)["mmcs"].value, "beside those of core"
    assert read_json(tmp_path / "run" / "evals" / "synthetic.json")["eval"] == "synthetic"
    assert evaluate({"run": tmp_path / "run"}, configs, held_out, no_lm) == [first]
    file = tmp_path / "run" / "evals" / "synthetic.json"
    write_json(file, {**read_json(file), "schema_version": 1})
    assert evaluate({"run": tmp_path / "run"}, configs, held_out, no_lm) == [first], "defined otherwise: measured again"
    assert read_json(file)["schema_version"] == synthetic.schema_version == 2
    table = measured_table("synthetic", [first])
    assert (
        table is not None
        and table.columns[:2] == ["run", "MMCS"]
        and table.groups[0][0][:2] == ["run (short)", "1.000"]
    )
    assert table.notes[0] == "activations are made from known features, not from a language model"
    with pytest.raises(ConfigError, match="whose true features are unknown"):
        Synthetic(SyntheticConfig()).run([make_subject()], store, no_lm)
    assert LoadedSAE("run", perfect_sae(planted), metadata).fingerprint == synthetic.sae_fingerprint
