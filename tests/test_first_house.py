"""Stores, SAEs, runs and studies that the first version of Scansion wrote still load; those of a later one are refused.

`fixtures/first_house` was written by commit 795d74b: a store of 40 contexts; `whole`, an SAE trained on it; `killed`, the
same run stopped at step 10 of 22; what that SAE encodes four contexts to; and a study of two runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from scansion.activations import ActivationStore, ActivationStream
from scansion.errors import ScansionError
from scansion.masks import BandMaskConfig
from scansion.sae import TopKConfig, load_sae
from scansion.study import StudyRecord
from scansion.study.final_info import read_final_info
from scansion.training import TrainingConfig, TrainingRun
from scansion.training.loop import train

OLD = Path(__file__).parent / "fixtures" / "first_house"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy to write in."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def test_a_store_opens_verifies_and_streams() -> None:
    store = ActivationStore(OLD / "store")
    store.verify()
    assert (store.n_positions, store.n_contexts, store.d_in) == (8, 40, 16)
    batch = ActivationStream(store, per_position=3, seed=0).batch(0)
    assert batch.x.shape == (7, 3, 16) and bool(torch.isfinite(batch.x).all())
    encoded = load_file(OLD / "encoded.safetensors")
    assert torch.equal(store.contexts(0, 4).x.float(), encoded["x"])


def test_an_sae_encodes_and_decodes_to_the_values_of_then() -> None:
    sae, metadata = load_sae(OLD / "whole" / "sae")
    encoded = load_file(OLD / "encoded.safetensors")
    assert (metadata.model, metadata.steps) == ("llama", 22)
    with torch.no_grad():
        acts = sae.encode(encoded["x"], encoded["positions"])
        torch.testing.assert_close(acts, encoded["acts"], rtol=1e-5, atol=1e-6)
        reconstruction = sae.decode(encoded["acts"], encoded["positions"])
    torch.testing.assert_close(reconstruction, encoded["reconstruction"], rtol=1e-5, atol=1e-6)


def test_a_killed_run_is_resumed_to_the_weights_of_then(old: Path) -> None:
    resume(old)
    weights, then = (load_file(old / name / "sae" / "sae_weights.safetensors") for name in ("killed", "whole"))
    assert weights.keys() == then.keys()
    # Equal to the last bit on the machine that wrote them; another processor may add in another order.
    for name in then:
        torch.testing.assert_close(weights[name], then[name], rtol=1e-4, atol=1e-5)


def test_a_study_is_opened_compared_and_shown(old: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    record = StudyRecord.open(old / "study")
    assert [(arm.name, arm.info.status) for arm in record.arms] == [("plain", "ok"), ("masked", "ok")]
    for arm in record.arms:
        (results,) = arm.evaluations().values()
        assert set(arm.info.means) and results.name
        fves = arm.info.values["fve"]
        assert fves == read_final_info(old / "study" / f"run_{arm.run}")[arm.name].values["fve"]
    status, printed, err = run("compare", *sorted((old / "study").glob("run_*")))
    assert status == 0, err
    assert "plain" in printed and "masked" in printed


def test_a_run_is_evaluated(old: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    folder = old / "study" / "run_0" / "seed_0"
    assert load_sae(folder / "sae")[1].steps > 0
    (old / "whole" / "config.yaml").write_bytes((old / "killed" / "config.yaml").read_bytes())
    status, _, err = run(
        "eval", old / "whole", "--held-out", old / "store", "--evaluations", "core", "--settings", "core: {loss_contexts: 0}"
    )  # fmt: skip
    assert status == 0, err
    assert (old / "whole" / "evals" / "core.json").is_file()


def of_a_later_version(path: Path, *inside: str) -> None:
    """Say in a JSON or YAML file, or in a mapping inside it, that a later version wrote it, with a key of its own."""
    value = yaml.safe_load(path.read_text())
    target = value
    for key in inside:
        target = target[key]
    target |= {"format_version": 9, "later": 1}
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "inside", "read"),
    [
        ("store/manifest.json", ("identity",), lambda old: ActivationStore(old / "store")),
        ("whole/sae/cfg.json", (), lambda old: load_sae(old / "whole" / "sae")),
        ("killed/config.yaml", (), lambda old: resume(old)),
        ("killed/checkpoints/step-000000010/state.json", (), lambda old: resume(old)),
        ("study/run_0/plan.json", (), lambda old: StudyRecord.open(old / "study")),
        ("study/run_0/final_info.json", (), lambda old: StudyRecord.open(old / "study")),
        ("study/run_0/seed_0/evals/core.json", (), lambda old: StudyRecord.open(old / "study").arms[0].evaluations()),
    ],
)
def test_what_a_later_version_wrote_is_refused_in_one_line(
    old: Path, file: str, inside: tuple[str, ...], read: Callable[[Path], object]
) -> None:
    of_a_later_version(old / file, *inside)
    with pytest.raises(ScansionError) as caught:
        read(old)
    message = str(caught.value)
    assert str(old / file) in message and "\n" not in message
    assert "is in format 9, and this version of Scansion reads up to format 1; update scansion" in message


def resume(old: Path) -> None:
    settings = yaml.safe_load((old / "killed" / "config.yaml").read_text())
    training = TrainingConfig.model_validate(settings["training"])
    sae = TopKConfig(d_sae=32, k=4, mask=BandMaskConfig(count=4, shared=0.25))
    train([TrainingRun("banded", old / "killed", sae, training)], ActivationStore(old / "store"))
