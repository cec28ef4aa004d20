"""Files written by hand, as each library lays them out, against its formula; what ours cannot compute is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scansion.errors import ConfigError, DamagedError, ScansionError, ShapeError
from scansion.execution.sparse import encode_sparse
from scansion.interop import read_foreign, write_saelens
from scansion.interop.saelens import read_own
from scansion.masks import BandMaskConfig, RandomHardMaskConfig
from scansion.sae import JumpReluConfig, ReluConfig, TopKConfig, load_sae, save_sae
from tests.conftest import random_contexts
from tests.interop.made import metadata, sae_of

D_IN, D_SAE = 24, 40


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.4


X = drawn(50, D_IN, seed=9) * 10
W_ENC, B_ENC, W_DEC, B_DEC = drawn(D_IN, D_SAE), drawn(D_SAE), drawn(D_SAE, D_IN), drawn(D_IN)
THRESHOLD = drawn(D_SAE, seed=5).abs()


def saelens(folder: Path, cfg: dict[str, Any], **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    plain = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**plain, **cfg}))
    weights = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, **tensors}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    return folder


def agrees(path: Path, acts: torch.Tensor) -> None:
    """What is read encodes as given, and decodes with the plain decoder."""
    sae = read_foreign(path).build(8)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(X), acts, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(sae.decode(acts), acts @ W_DEC + B_DEC, rtol=1e-5, atol=1e-4)


def test_a_saelens_folder_of_before_version_6(tmp_path: Path) -> None:
    cfg = {
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "context_size": 64,
        "model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre", "finetuning_scaling_factor": False,
    }  # fmt: skip
    path = saelens(tmp_path / "old", cfg)
    pre = ((X - B_DEC) @ W_ENC + B_ENC).relu()
    top = pre.topk(3, dim=1)
    agrees(path, torch.zeros_like(pre).scatter(1, top.indices, top.values))
    foreign = read_foreign(path)
    assert (foreign.model, foreign.hook_point, foreign.context_length) == ("gpt2-small", "blocks.8.hook_resid_pre", 64)


@pytest.mark.parametrize("file", ["params.npz", "params.safetensors"])
def test_gemma_scope(file: str, tmp_path: Path) -> None:
    tensors = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": THRESHOLD}
    if file.endswith("npz"):
        np.savez(tmp_path / file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_file({name.replace("W_", "w_"): tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / file)
    pre = X @ W_ENC + B_ENC
    agrees(tmp_path / file, pre.relu() * (pre > THRESHOLD))
    agrees(tmp_path, pre.relu() * (pre > THRESHOLD))


def test_a_threshold_of_zero_or_below_lets_everything_positive_pass(tmp_path: Path) -> None:
    path = saelens(tmp_path / "j", {"architecture": "jumprelu"}, threshold=-THRESHOLD)
    agrees(path, ((X - B_DEC) @ W_ENC + B_ENC).relu())


def test_openai(tmp_path: Path) -> None:
    state = {"encoder.weight": W_ENC.T, "latent_bias": B_ENC, "decoder.weight": W_DEC.T, "pre_bias": B_DEC}
    torch.save(
        {**state, "activation": "ReLU", "stats_last_nonzero": torch.zeros(D_SAE), "latents_mean_square": B_ENC},
        tmp_path / "5.pt",
    )
    agrees(tmp_path / "5.pt", ((X - B_DEC) @ W_ENC + B_ENC).relu())
    top = {**state, "activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}
    torch.save(top, tmp_path / "top.pt")
    mean = X.mean(dim=1, keepdim=True)
    std = (X - mean).std(dim=1, keepdim=True)
    pre = ((X - mean) / (std + 1e-5) - B_DEC) @ W_ENC + B_ENC
    best = pre.topk(3, dim=1)
    acts = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    sae = read_foreign(tmp_path / "top.pt").build(8)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(X), acts, rtol=1e-5, atol=1e-4)
        for x_hat in (sae(X), sae.decode(acts, x=X)):
            torch.testing.assert_close(x_hat, (acts @ W_DEC + B_DEC) * std + mean, rtol=1e-5, atol=1e-4)
        with pytest.raises(ShapeError, match="normalises each token"):
            sae.decode(acts)
    torch.save({**top, "activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, tmp_path / "signed.pt")
    with pytest.raises(ConfigError, match="'TopK, then Identity'; Scansion reads ReLU and TopK"):
        read_foreign(tmp_path / "signed.pt")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "whitened input": (
        {"architecture": "standard", "normalize_activations": "covariance_whitening"},
        "normalize_activations is 'covariance_whitening'",
    ),
    "scaled input": (
        {"architecture": "standard", "normalize_activations": "expected_average_only_in"},
        "give it with --input-factor",
    ),
    "heads": ({"architecture": "standard", "reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
    "transcoder": ({"architecture": "transcoder"}, "architecture 'transcoder'; Scansion reads standard, topk"),
    "their temporal": ({"architecture": "temporal"}, "architecture 'temporal'"),
    "no k": ({"architecture": "topk"}, "does not say k"),
    "no threshold": ({"architecture": "jumprelu"}, "threshold missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_cannot_compute_is_refused_by_name(case: str, tmp_path: Path) -> None:
    cfg, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        read_foreign(saelens(tmp_path / "sae", cfg))


def test_a_factor_on_the_input_is_folded(tmp_path: Path) -> None:
    path = saelens(
        tmp_path / "f",
        {"architecture": "jumprelu", "normalize_activations": "expected_average_only_in"},
        threshold=THRESHOLD,
    )
    pre = (0.3 * X - B_DEC) @ W_ENC + B_ENC
    acts = pre.relu() * (pre > THRESHOLD)
    sae = read_foreign(path, input_factor=0.3).build(8)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(X), acts, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(sae.decode(acts), (acts @ W_DEC + B_DEC) / 0.3, rtol=1e-5, atol=1e-4)
    for other in (saelens(tmp_path / "plain", {"architecture": "standard"}), path):
        with pytest.raises(ConfigError, match="an input factor above 0 is for SAEs"):
            read_foreign(other, input_factor=-1.0 if other == path else 2.0)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scaling_factor unknown"):
        read_foreign(saelens(tmp_path / "sae", {"architecture": "standard"}, scaling_factor=torch.ones(D_SAE)))


@pytest.mark.parametrize("name", ["transcode", "skip_connection", "activation"])
def test_other_sparsify_coders_are_refused(name: str, tmp_path: Path) -> None:
    settings = {"k": 3, "activation": "topk"} | {name: "groupmax" if name == "activation" else True}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    save_file({"b_dec": B_DEC}, tmp_path / "sae.safetensors")
    with pytest.raises(ConfigError, match=rf"{name} is "):
        read_foreign(tmp_path)


def spoil(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (spoil("sae_weights.safetensors", b"x" * 100), DamagedError),
        (spoil("cfg.json", b"\xff"), ConfigError),
        (spoil("cfg.json", b"[]"), ConfigError),
    ],
)
def test_damaged_files_are_named(damage: Callable[[Path], None], error: type[ScansionError], tmp_path: Path) -> None:
    path = saelens(tmp_path / "sae", {"architecture": "standard"})
    damage(path)
    with pytest.raises(error, match=r"cfg\.json|sae_weights"):
        read_foreign(path)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"encoder.weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(DamagedError, match="holds more than tensors"):
        read_foreign(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


def test_anything_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ConfigError, match=r"it holds readme\.md"):
        read_foreign(tmp_path)
    with pytest.raises(ConfigError, match="there is nothing at"):
        read_foreign(tmp_path / "nowhere")


def test_what_is_written_for_saelens_is_read_back(tmp_path: Path) -> None:
    sae = sae_of(JumpReluConfig(d_sae=D_SAE))
    write_saelens(sae, metadata(), tmp_path / "out")
    again = read_foreign(tmp_path / "out").build(8)
    with torch.no_grad():
        assert torch.equal(again.encode(X), sae.encode(X))
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    about = cfg["metadata"]
    assert (about["hook_name"], about["model_name"], about["seqpos_slice"]) == (
        "blocks.1.hook_resid_post",
        "llama",
        [1, None],
    )


MASKED = TopKConfig(d_sae=D_SAE, k=5, mask=RandomHardMaskConfig())


def test_a_mask_in_force_is_written_in_a_form_of_ours_and_read_back(tmp_path: Path) -> None:
    sae, positions = sae_of(MASKED), torch.arange(50) % 8
    assert write_saelens(sae, metadata(), tmp_path / "out") == "scansion"
    foreign = read_foreign(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(foreign.build(8).encode(X, positions), sae.encode(X, positions))
    with pytest.raises(ConfigError, match="its mask is of 8 positions, and the contexts have 16"):
        foreign.build(16)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_norm_of_the_input_is_saved_written_and_undone(norm: str, tmp_path: Path) -> None:
    sae = sae_of(TopKConfig(d_sae=D_SAE, k=5, input_norm=norm))
    write_saelens(sae, metadata(), tmp_path / "out")
    save_sae(sae, tmp_path / "own", metadata())
    with torch.no_grad():
        expected, padding = sae(X), torch.zeros(1, D_IN)
        for again in (
            read_foreign(tmp_path / "out").build(8),
            load_sae(tmp_path / "own")[0],
            read_own(tmp_path / "out"),
        ):
            assert again.config.input_norm == norm and torch.equal(again(X), expected)
        # The norm takes out the length of a token, and the reconstruction gets it back.
        torch.testing.assert_close(sae.encode(3 * X), sae.encode(X), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sae(3 * X), 3 * sae(X), rtol=1e-3, atol=1e-3)
        assert bool(sae(padding).isfinite().all())
        entries = encode_sparse(sae, X)
        assert entries is not None
        rows = torch.zeros(len(X), D_SAE).index_put_(
            (entries.tokens, entries.features), entries.values, accumulate=True
        )
        torch.testing.assert_close(rows, sae.encode(X))
    masked = sae_of(TopKConfig(d_sae=D_SAE, k=5, input_norm=norm, mask=RandomHardMaskConfig()))
    with pytest.raises(ConfigError, match="has no counterpart there"):
        write_saelens(masked, metadata(), tmp_path / "masked")


def test_an_sae_that_normalises_its_input_is_measured_and_not_trained(tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    sae = sae_of(TopKConfig(d_sae=20, k=4, input_norm="layer_norm"), d_in=16)
    write_saelens(sae, metadata(), tmp_path / "export")
    ok(run("import", tmp_path / "export", "--store", store.folder, "--out", tmp_path / "imported"))
    train(run, store.folder, tmp_path / "ours", "topk")
    said = ok(
        run(
            "eval", tmp_path / "imported", tmp_path / "ours", "--held-out", store.folder, "--evaluations", "core,position",
            "--settings", "core: {loss_contexts: 0}, position: {null_draws: 20, groups: 4, replaced_contexts: 0}",
            "--device", "cpu",
        )
    )  # fmt: skip
    assert "imported was imported from SAELens" in said
    x, positions = store.contexts(0, 60).x[1:].float(), torch.arange(1, 8)[:, None]
    with torch.no_grad():
        error = (x - sae(x, positions)).square().sum()
        share = 1 - error / (x - x.mean(dim=(0, 1))).square().sum()
    found = json.loads((tmp_path / "imported" / "evals" / "core.json").read_text())
    assert found["fve"]["value"] == pytest.approx(float(share), rel=1e-3)
    status, _, err = run(
        "train", store.folder, "--from", tmp_path / "imported", "--out", tmp_path / "on", "--tokens", 600
    )
    assert status == 2 and "an SAE with input_norm layer_norm cannot be trained" in " ".join(err.split())


def test_a_mask_can_be_dropped(tmp_path: Path) -> None:
    sae = sae_of(MASKED)
    assert write_saelens(sae, metadata(), tmp_path / "out", drop_mask=True) == "topk"
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["scansion_mask_dropped"] == "random_hard"
    with torch.no_grad():
        assert torch.equal(read_foreign(tmp_path / "out").build(8).encode(X), sae.lifted().encode(X))


def test_what_saelens_cannot_compute_is_refused(tmp_path: Path) -> None:
    biased = sae_of(TopKConfig(d_sae=D_SAE, k=5, mask=BandMaskConfig(count=4, own_bias=True)))
    with pytest.raises(ConfigError, match="bands have a decoder bias each"):
        write_saelens(biased, metadata(), tmp_path / "out", drop_mask=True)
    own = type("OwnSAE", (type(biased),), {"__module__": "mine"})
    biased.__class__ = own
    with pytest.raises(ConfigError, match="OwnSAE is of a plugin"):
        write_saelens(biased, metadata(), tmp_path / "out")


def test_settings_of_ours_that_are_damaged_are_named(tmp_path: Path) -> None:
    write_saelens(sae_of(MASKED), metadata(), tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    cfg["scansion"]["sae"]["k"] = -1
    (tmp_path / "out" / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ConfigError, match="does not hold our settings"):
        read_foreign(tmp_path / "out")


def ok(result: tuple[int, str, str]) -> str:
    """What a command printed, on both streams; it must have ended well."""
    status, out, err = result
    assert status == 0, err
    return " ".join((out + err).split())


def train(run, store: Path, out: Path, architecture: str) -> None:
    ok(
        run(
            "train", store, "--out", out, "--tokens", 600, "--batch-tokens", 70, "--d-sae", 32,
            "--architecture", architecture, "--k", 4, "--device", "cpu",
        )
    )  # fmt: skip


def test_an_import_is_evaluated_and_compared_beside_ours(tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    sae = sae_of(ReluConfig(d_sae=20), d_in=16)
    write_saelens(sae, metadata(), tmp_path / "export")
    said = ok(run("import", tmp_path / "export", "--store", store.folder, "--out", tmp_path / "imported"))
    assert "imported from SAELens: relu, 20 features" in said
    imported, about = load_sae(tmp_path / "imported" / "sae")
    assert about.imported is not None and about.imported.startswith("SAELens (") and about.tokens is None
    x, positions = store.contexts(0, 4).x.float(), torch.arange(8)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(imported.encode(x, positions), sae.encode(x, positions))
    train(run, store.folder, tmp_path / "ours", "topk")
    said = ok(
        run(
            "eval", tmp_path / "imported", tmp_path / "ours", "--held-out", store.folder, "--evaluations", "core",
            "--settings", "core: {loss_contexts: 0}", "--device", "cpu",
        )
    )  # fmt: skip
    assert "not comparable" not in said and "imported was imported from SAELens" in said
    assert "trained on 630 tokens" in said


def test_an_import_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(10))
    saelens(tmp_path / "wide", {"architecture": "standard"})
    other = metadata().model_copy(update={"hook_point": "resid_post.2"})
    write_saelens(sae_of(ReluConfig(d_sae=20), d_in=16), other, tmp_path / "layer")
    for source, message in (
        ("wide", "reads activations of width 24"),
        ("layer", "is for resid_post.2, and"),
        ("nowhere", "there is nothing at"),
    ):
        status, _, err = run("import", tmp_path / source, "--store", store.folder, "--out", tmp_path / "new")
        assert status == 2 and message in " ".join(err.split())
        assert not (tmp_path / "new").exists()
    status, _, err = run("import", tmp_path / "wide", "--store", store.folder, "--out", tmp_path / "layer")
    assert status == 2 and "is there already" in err


def test_the_export_command(tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    train(run, store.folder, tmp_path / "ours", "batch_topk")
    ok(run("export", tmp_path / "ours", "--out", tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["architecture"] == "jumprelu"
    threshold = load_file(tmp_path / "out" / "sae_weights.safetensors")["threshold"]
    assert threshold.shape == (32,) and float(threshold.min()) == float(threshold.max())
