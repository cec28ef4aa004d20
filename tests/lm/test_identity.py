"""Two names of one model are one model everywhere: in stores, SAEs, evaluations and comparisons."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from scansion.activations import HarvestPlan, harvest
from scansion.corpus import CorpusConfig, tokenizer_fingerprint
from scansion.errors import EvalError, StoreError
from scansion.evals.base import LoadedSAE
from scansion.evals.reading.training import (
    require_sae_matches_lm,
    require_same_model,
    require_same_source,
    require_same_tokenizer,
)
from scansion.files import fingerprint
from scansion.lm import BUNDLED_MODEL, HookPoint, LanguageModel, ModelId, model_facts
from scansion.pipeline.stores import HarvestSpec, build_stores
from scansion.records import SEAL
from scansion.sae import ReluConfig, SAEMetadata, build_sae
from tests.conftest import WIDTH, make_lm, make_plan, make_tokenizer, random_contexts

COMMIT, OTHER = "c" * 40, "d" * 40
WEIGHTS = "xxh3:" + "a" * 32
SNAPSHOT = f"/home/me/.cache/huggingface/hub/models--google--gemma-2-2b/snapshots/{COMMIT}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ModelId("./gemma", WEIGHTS), ModelId("/models/gemma", WEIGHTS), True),
        (ModelId("google/gemma-2-2b", COMMIT), ModelId(SNAPSHOT, COMMIT), True),
        # As an earlier version recorded a folder of the hub's cache, and weights without their configuration.
        (ModelId("google/gemma-2-2b", COMMIT), ModelId(SNAPSHOT, WEIGHTS), True),
        (ModelId("./gemma", WEIGHTS), ModelId("./gemma", WEIGHTS + "+" + "1" * 16), True),
        (ModelId("./gemma", WEIGHTS + "+" + "2" * 16), ModelId("./gemma", WEIGHTS + "+" + "1" * 16), False),
        (ModelId("google/gemma-2-2b", COMMIT), ModelId("google/gemma-2-2b", OTHER), False),
        (ModelId("./gemma", WEIGHTS), ModelId("./gemma", "xxh3:" + "b" * 32), False),
        # Where nobody can say which revision it was, the name is all there is.
        (ModelId("one", "unknown"), ModelId("other", "unknown"), False),
        (ModelId("one", "unknown"), ModelId("one", "unknown"), True),
        (ModelId("one", "unknown"), ModelId("one", COMMIT), False),
        # One commit may hold several GGUF files.
        (ModelId(SNAPSHOT + "/q4.gguf", WEIGHTS), ModelId(SNAPSHOT + "/q8.gguf", "xxh3:" + "b" * 32), False),
    ],
)
def test_the_revision_decides(one: ModelId, other: ModelId, same: bool) -> None:
    assert one.same_as(other) is other.same_as(one) is same
    if not same:
        assert one.key != other.key


def test_keys_of_hub_models_and_of_the_bundled_one_stay_what_they_were() -> None:
    assert ModelId("google/gemma-2-2b", COMMIT).key == ModelId(SNAPSHOT, COMMIT).key == ("google/gemma-2-2b", COMMIT)
    assert ModelId(BUNDLED_MODEL, WEIGHTS).key == (BUNDLED_MODEL, WEIGHTS)
    assert ModelId("./gemma", WEIGHTS).key == ModelId("/models/gemma", WEIGHTS).key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_lm().model.save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_a_relative_path_a_link_and_a_copy_are_the_model_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "link").symlink_to(folder)
    shutil.copytree(folder, folder.parent / "copy")
    itself = model_facts(str(folder)).id
    for name in ("./gemma", "gemma", "link", "copy"):
        facts = model_facts(name)
        assert facts.name == name and facts.id.same_as(itself) and facts.id.key == itself.key


def test_equal_weights_under_another_configuration_are_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    before = model_facts(str(folder)).id
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert model_facts(str(folder)).id.same_as(before)
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))
    assert not model_facts(str(folder)).id.same_as(before)


def test_a_folder_of_the_hubs_cache_is_the_hubs_model(folder: Path) -> None:
    snapshot = folder.parent / "models--google--gemma-2-2b" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (folder.parent / "link").symlink_to(snapshot)
    for name in (str(snapshot), str(folder.parent / "link")):
        assert model_facts(name).id.same_as(ModelId("google/gemma-2-2b", COMMIT))


def test_a_harvest_under_another_name_of_the_model_reuses_the_store(tmp_path: Path, lm: LanguageModel) -> None:
    def never() -> LanguageModel:
        raise AssertionError("the LM was loaded")

    plan = make_plan(tmp_path / "s", random_contexts(6))

    def called(name: str, revision: str = WEIGHTS) -> HarvestPlan:
        identity = plan.identity.model_copy(update={"model": name, "model_revision": revision})
        return dataclasses.replace(plan, identity=identity)

    store = harvest(called("./gemma"), lambda: lm)
    assert harvest(called("/models/gemma"), never).manifest == store.manifest
    assert called("./gemma").identity.key == called("/models/gemma").identity.key == store.manifest.key
    with pytest.raises(StoreError, match="model_revision is"):
        harvest(called("/models/gemma", "xxh3:" + "b" * 32), never)


def test_an_sae_trained_on_another_name_of_the_model_is_evaluated(tmp_path: Path, lm: LanguageModel) -> None:
    plan = make_plan(tmp_path / "s", random_contexts(6))
    identity = plan.identity.model_copy(update={"model": "./gemma", "model_revision": WEIGHTS})
    store = harvest(dataclasses.replace(plan, identity=identity), lambda: lm)
    facts = dataclasses.replace(lm.facts, name="gemma", revision=WEIGHTS)
    for revision in (WEIGHTS, "xxh3:" + "b" * 32):
        metadata = SAEMetadata(
            model="/models/gemma", model_revision=revision, hook_point="resid_post.1", store_key="k", contexts="c",
            context_length=8, use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=0, training={},
        )  # fmt: skip
        sae = build_sae(ReluConfig(d_sae=24), WIDTH, 8, torch.Generator().manual_seed(0)).eval()
        subjects = [LoadedSAE("sae", sae, metadata)]
        context = (
            nullcontext() if revision == WEIGHTS else pytest.raises(EvalError, match="was trained on /models/gemma")
        )
        with context:
            require_same_source(subjects, store)
        with context:
            require_sae_matches_lm(subjects, dataclasses.replace(lm, facts=facts), HookPoint(1), 8)
    require_same_model(dataclasses.replace(lm, facts=facts), store)


def test_a_source_finds_the_store_in_the_cache_that_another_name_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer().save_pretrained(folder)
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i} w{i + 1} w3"}) + "\n" for i in range(3, 40))
    )
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    corpus = CorpusConfig(source=str(tmp_path / "text.jsonl"), context_length=4, held_out_fraction=0.4)
    first = build_stores(HarvestSpec(str(folder), "layers.1", corpus))
    shutil.copytree(folder, tmp_path / "copy")
    assert build_stores(HarvestSpec(str(tmp_path / "copy"), "layers.1", corpus)).train.folder == first.train.folder
    # A store of an earlier version: its revision does not say what the configuration was, and its key had the name in it.
    path = first.train.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[SEAL]
    manifest["identity"]["model_revision"] = manifest["identity"]["model_revision"].split("+")[0]
    manifest["key"] = fingerprint(manifest["identity"])
    path.write_text(json.dumps(manifest))
    first.train.folder.rename(first.train.folder.with_name("gemma-resid_post.1-train-123456789abc"))
    found = build_stores(HarvestSpec(str(folder), "layers.1", corpus)).train
    assert found.folder.name == "gemma-resid_post.1-train-123456789abc"
    assert found.manifest.key == manifest["key"]


def test_a_tokenizer_that_has_changed_is_refused(tmp_path: Path) -> None:
    lm = make_lm()
    plan = make_plan(tmp_path / "s", random_contexts(6))
    then = tokenizer_fingerprint(lm.tokenizer)
    identity = plan.identity.model_copy(update={"corpus": {"tokenizer": then}})
    store = harvest(dataclasses.replace(plan, identity=identity), lambda: lm)
    require_same_tokenizer(lm, store)
    lm.tokenizer.add_tokens(["w99"])
    with pytest.raises(EvalError, match="the tokenizer of llama has changed since"):
        require_same_tokenizer(lm, store)
