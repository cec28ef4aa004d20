"""Plans on stores that are there already: activations of one's own are trained on and compared without a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scansion.activations import ActivationStore
from scansion.errors import ConfigError, StoreError
from scansion.pipeline import existing
from scansion.study import StudyRecord, load_plan
from scansion.study.checks import check_plan
from tests.conftest import make_lm, random_contexts

WIDTH = 16


def own_store(folder: Path, seed: int, split: str, length: int = 6, width: int = WIDTH) -> ActivationStore:
    acts = torch.randn(60, length, width, generator=torch.Generator().manual_seed(seed))
    return ActivationStore.from_tensors(acts, folder, name="recordings", split=split)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    own_store(tmp_path / "mine/train", 0, "train")
    own_store(tmp_path / "mine/held_out", 1, "held_out")
    return tmp_path


def settings(store: Any, **more: Any) -> dict[str, Any]:
    sae = {"architecture": "topk", "d_sae": 20, "k": 3}
    return {
        "name": "own",
        "store": store,
        "training": {"tokens": 1200, "batch_tokens": 60, "use_position_0": True, "device": "cpu"},
        "evaluations": {"core": {}, "position": {"null_draws": 20, "groups": 4}},
        "seeds": [0, 1],
        "runs": [
            {"name": "no mask", "sae": sae},
            {"name": "bands", "sae": {**sae, "mask": {"family": "bands", "count": 2}}},
        ],
        **more,
    }


def written(folder: Path, plan: dict[str, Any]) -> Path:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def test_a_study_on_own_activations_from_end_to_end(home: Path, run) -> None:
    plan = written(home, settings(str(home / "mine")))
    status, out, err = run("study", "run", plan, "--out", home / "out")
    assert status == 0, err
    assert "bands" in out and (home / "out/report/index.html").is_file()
    record = StudyRecord.open(home / "out")
    held_out = ActivationStore(home / "mine/held_out")
    assert record.held_out().manifest.key == held_out.manifest.key
    for arm in record.arms:
        assert arm.info.status == "ok" and len(arm.info.seeds) == 2
        for result in arm.evaluations().values():
            assert result.core.data["store"] == held_out.manifest.key
    status, out, err = run("study", "run", plan, "--out", home / "out", "--no-report")  # nothing is left to do
    assert status == 0 and "already trained" not in out and "train 2 SAEs" not in err


def test_one_folder_stands_for_both(home: Path) -> None:
    one = load_plan(written(home, settings(str(home / "mine"))))
    both = {name: str(home / "mine" / name) for name in ("train", "held_out")}
    two = load_plan(written(home, settings(both)))
    assert one == two and one.digest == two.digest
    assert set(one.model_dump()).isdisjoint({"corpus", "model", "hook_point", "world", "harvest"})


def test_what_needs_a_language_model_is_refused_by_name_before_anything(home: Path, run) -> None:
    measured = {"core": {}, "sparse_probing": {}, "unlearning": {}}
    plan = written(home, settings(str(home / "mine"), evaluations=measured))
    status, _, err = run("study", "run", plan, "--out", home / "out")
    said = " ".join(err.split())
    assert status == 2 and "language model: leave out sparse_probing, unlearning" in said
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"store": None}, "or a world of synthetic activations, or a store"),
        ({"world": {}}, "a world or a store, not both"),
        ({"hook_point": "layers.3"}, "hook_point is of a language model or its text, and a store has been made of it"),
        ({"store": {"train": "a"}}, "held_out"),
    ],
)
def test_mistakes_in_the_plan_are_found_when_it_is_read(change: dict[str, Any], message: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(written(home, settings(str(home / "mine")) | change))


def test_stores_that_do_not_belong_together_are_refused(home: Path, make_store) -> None:
    own_store(home / "long", 2, "held_out", length=7)
    text = make_store(random_contexts(20))
    for held_out, message in (
        (home / "mine/train", "hold the same contexts"),
        (home / "long", "context_length is 6 and 7"),
        (text.folder, "model is recordings and llama"),
    ):
        plan = load_plan(written(home, settings({"train": str(home / "mine/train"), "held_out": str(held_out)})))
        with pytest.raises(ConfigError, match=message):
            check_plan(plan, {0: home / "out/run_0"})
    gone = load_plan(written(home, settings(str(home / "nowhere"))))
    with pytest.raises(StoreError, match="no activation store at"):
        check_plan(gone, {0: home / "out/run_0"})


def test_a_sound_plan_on_a_store_is_said_to_be_sound(home: Path, run) -> None:
    status, out, err = run("study", "plan", written(home, settings(str(home / "mine"))))
    assert (status, err) == (0, "") and "is sound" in out and "not on a store" in out


def test_stores_of_a_language_model_keep_it(home: Path, make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured with the model that they name, if the plan measures what needs one."""
    train, held_out = (make_store(random_contexts(30, seed=seed), f"text{seed}") for seed in (0, 1))
    plan = settings({"train": str(train.folder), "held_out": str(held_out.folder)})
    check_plan(load_plan(written(home, plan | {"evaluations": {"core": {}}})), {0: home / "out/run_0"})
    asked: list[tuple[object, ...]] = []
    lm = make_lm()
    monkeypatch.setattr(existing, "load_language_model", lambda *arguments: (asked.append(arguments), lm)[1])
    assert existing.ExistingSpec(train.folder, held_out.folder).lm is lm
    identity = train.identity
    assert asked == [(identity.model, identity.model_id.commit, "auto", identity.model_dtype)]


@pytest.mark.parametrize(("revision", "belong"), [("xxh3:" + "0" * 32, True), ("xxh3:" + "1" * 32, False)])
def test_one_model_by_two_paths_is_one_model(
    revision: str, belong: bool, make_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = (make_store(random_contexts(9, seed=seed), name) for seed, name in enumerate(("one", "two")))
    models = {train.folder: ("./llama", "xxh3:" + "0" * 32), held_out.folder: ("/models/llama", revision)}

    def identity(store: ActivationStore):
        model, its_revision = models[store.folder]
        return store.manifest.identity.model_copy(update={"model": model, "model_revision": its_revision})

    monkeypatch.setattr(ActivationStore, "identity", property(identity))
    spec = existing.ExistingSpec(train.folder, held_out.folder)
    if belong:
        assert spec.stores.train.folder == train.folder
    else:
        with pytest.raises(ConfigError, match=r"do not belong together: model is \./llama and /models/llama"):
            _ = spec.stores
