"""``--from RUN``: a trained or imported SAE gets a mask and is trained on; what does not fit is refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from scansion.activations import ActivationStore, ActivationStream
from scansion.errors import TrainingError
from scansion.interop import write_saelens
from scansion.masks import BandMaskConfig, NoMaskConfig, SoftMaskConfig, Start
from scansion.pipeline.importing import import_sae
from scansion.sae import (
    GatedConfig,
    JumpReluConfig,
    ReluConfig,
    SAEConfig,
    TopKConfig,
    build_sae,
    load_sae,
    sae_fingerprint,
)
from scansion.study.plan import StudyPlan
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.warm_start import start_from_trained
from tests.interop.made import metadata, sae_of

D_SAE = 32
SETTINGS = TrainingConfig(tokens=28 * 20, batch_tokens=28, device="cpu")
BANDS = BandMaskConfig(count=2)


@pytest.fixture(scope="module")
def plain(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train([TrainingRun("plain", folder, TopKConfig(d_sae=D_SAE, k=4), SETTINGS)], store)
    return folder


def going_on(source: Path, out: Path, sae: SAEConfig, **settings: object) -> TrainingRun:
    return TrainingRun(
        out.name, out, sae, TrainingConfig.model_validate({**SETTINGS.model_dump(), "from": source, **settings})
    )


def test_the_weights_are_taken_and_the_record_says_from_where(store, plain: Path, tmp_path: Path) -> None:
    run = going_on(plain, tmp_path / "masked", TopKConfig(d_sae=D_SAE, k=4, mask=BANDS), tokens=0)
    train([run], store)
    (before, of_before), (after, of_after) = load_sae(plain / "sae"), load_sae(tmp_path / "masked" / "sae")
    x = store.contexts(0, 6)
    with torch.no_grad():
        torch.testing.assert_close(after.lifted().encode(x), before.encode(x))
        assert not torch.equal(after.encode(x) > 0, before.encode(x) > 0)
    start = of_after.started_from
    assert start is not None and (start.fingerprint, start.tokens) == (sae_fingerprint(before, of_before), 560)
    written = yaml.safe_load((tmp_path / "masked" / "config.yaml").read_text())
    assert written["started_from"] == start.fingerprint and written["training"]["from"] == str(plain)


def test_it_goes_on_better_than_from_nothing(store, plain: Path, tmp_path: Path) -> None:
    config = TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(start=Start(kind="from_usage")))
    again = TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig())
    train([going_on(plain, tmp_path / "on", config), TrainingRun("new", tmp_path / "new", again, SETTINGS)], store)
    x = store.contexts(0, 60)
    with torch.no_grad():
        on, new = ((load_sae(tmp_path / name / "sae")[0](x) - x.x).square()[1:].mean() for name in ("on", "new"))
    assert on < new
    counted = load_sae(tmp_path / "on" / "sae")[1]
    assert counted.tokens == 560 and counted.started_from is not None and counted.started_from.tokens == 560
    train(
        [going_on(tmp_path / "on", tmp_path / "third", config.model_copy(update={"mask": NoMaskConfig()}), tokens=0)],
        store,
    )
    third = load_sae(tmp_path / "third" / "sae")[1].started_from
    assert third is not None and third.tokens == 1120


@pytest.mark.parametrize("config", [ReluConfig(d_sae=20), JumpReluConfig(d_sae=20), GatedConfig(d_sae=20)])
def test_an_imported_sae_computes_the_same_with_unit_rows(config: SAEConfig, store, tmp_path: Path) -> None:
    write_saelens(sae_of(config, d_in=16), metadata(), tmp_path / "theirs")
    import_sae(tmp_path / "theirs", store, tmp_path / "run")
    stream = ActivationStream(store, 4, seed=0)
    sae = build_sae(config, 16, 8, torch.Generator().manual_seed(0)).eval()
    start_from_trained(sae, TrainingConfig.model_validate({"from": tmp_path / "run"}), stream, stream.input_scale)
    sae.fold_scale(stream.input_scale)
    x = store.contexts(0, 6)
    with torch.no_grad():
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
        torch.testing.assert_close(sae(x), load_sae(tmp_path / "run" / "sae")[0](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "of_store", "message"),
    [
        (TopKConfig(d_sae=40, k=4), {}, "its d_sae is 32, not 40"),
        (ReluConfig(d_sae=D_SAE), {}, "its architecture is topk, not relu"),
        (
            TopKConfig(d_sae=D_SAE, k=4),
            {"hook_point": "resid_post.2"},
            r"SAE of resid_post\.1, and these are .* resid_post\.2",
        ),
        (TopKConfig(d_sae=D_SAE, k=4), {"model_revision": "other"}, "which mean something else"),
        (TopKConfig(d_sae=D_SAE, k=4), {"contexts": "ffff"}, "go on with the store it was trained on"),
        (
            TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(start=Start(kind="from_usage", sae=Path("x")))),
            {},
            r"leave out start\.sae",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    config, of_store, message, store, plain: Path, tmp_path: Path, monkeypatch
) -> None:
    other = store.identity.model_copy(update=of_store)
    monkeypatch.setattr(ActivationStore, "identity", property(lambda _: other))
    with pytest.raises(TrainingError, match=message):
        train([going_on(plain, tmp_path / "new", config)], store)
    assert not (tmp_path / "new").exists()


def test_usage_needs_an_sae(store, tmp_path: Path) -> None:
    config = TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(start=Start(kind="from_usage")))
    with pytest.raises(TrainingError, match=r"no SAE is named: give start\.sae in the mask, or --from RUN"):
        train([TrainingRun("x", tmp_path / "x", config, SETTINGS)], store)


def test_the_command_takes_what_is_not_given_from_the_sae(store, plain: Path, tmp_path: Path, run) -> None:
    out = tmp_path / "masked"
    status, _, err = run(
        "train",
        store.folder,
        "--from",
        plain,
        "--mask",
        "bands, count: 2",
        "--out",
        out,
        "--tokens",
        56,
        "--device",
        "cpu",
    )
    assert status == 0, err
    config = load_sae(out / "sae")[0].config
    assert config == TopKConfig(d_sae=D_SAE, k=4, mask=BANDS)
    status, _, err = run("train", store.folder, "--from", plain, "--architecture", "relu", "--out", tmp_path / "x")
    assert status == 2 and "its architecture is topk, not relu" in " ".join(err.split())


def test_a_plan_names_it_under_training() -> None:
    plan = StudyPlan.model_validate(
        {
            "name": "p",
            "corpus": {"source": "sotu"},
            "runs": [
                {"name": "a", "sae": {"architecture": "topk", "d_sae": 32}},
                {"name": "b", "sae": {"architecture": "topk", "d_sae": 32}, "training": {"from": "runs/plain"}},
            ],
        }
    )
    assert [arm.training.from_ for arm in plan.arms()] == [None, Path("runs/plain")]
    assert StudyPlan.model_validate(plan.model_dump(mode="json")) == plan
