"""The optimiser's kernels step as torch does, and low precision changes little: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.activations import PositionedBatch
from scansion.execution import backends, precision
from scansion.execution.cuda import kernels, top_k
from scansion.training import TrainingConfig
from scansion.training.learner import Learner
from tests.masks.families import EVERYWHERE, FAMILIES, L, make_sae, some_x

CONFIG = TrainingConfig(tokens=10 * 4 * L, batch_tokens=4 * L, lr=0.01, lr_warmup_steps=2, clip_norm=0.5)
CASES = [
    ("topk", "bands, shared"),
    ("relu", "bands"),
    ("batch_topk", "random_hard"),
    ("topk", "soft"),
    ("gated", "bands"),
]


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device at hand is taken for a GPU on which the kernels work."""
    monkeypatch.setattr(top_k, "GROUPS", 32)
    monkeypatch.setattr(backends, "kernels_for", lambda device, dtype: kernels)
    monkeypatch.setattr(backends, "batches_bands", lambda device: True)
    monkeypatch.setattr(backends, "BACKENDS", [replace(backends.BACKENDS[1], module_for=lambda *tensors: kernels)])


def trained(architecture: str, family: str, n_steps: int = 3) -> tuple[Learner, torch.Tensor]:
    learner = Learner(make_sae(architecture, FAMILIES[family]), CONFIG, n_steps=10)
    metrics = [learner.advance(PositionedBatch(some_x(seed, n=4), EVERYWHERE)) for seed in range(n_steps)]
    return learner, torch.stack(metrics)


@pytest.mark.parametrize(("architecture", "family"), CASES)
def test_steps_by_kernels_are_those_of_torch(
    architecture: str, family: str, with_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, metrics = trained(architecture, family)
    monkeypatch.undo()
    reference, expected = trained(architecture, family)
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    for name, tensor in reference.state()[0].items():
        torch.testing.assert_close(
            ours.state()[0][name], tensor, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("architecture", "family"), [("topk", "bands, shared"), ("batch_topk", "bands")])
def test_a_run_resumed_by_kernels_is_the_same_to_the_last_bit(
    architecture: str, family: str, with_kernels: None
) -> None:
    whole, _ = trained(architecture, family, n_steps=4)
    first, _ = trained(architecture, family, n_steps=2)
    second = Learner(make_sae(architecture, FAMILIES[family], seed=5), CONFIG, n_steps=10)
    second.restore(*first.state())
    for seed in (2, 3):
        second.advance(PositionedBatch(some_x(seed, n=4), EVERYWHERE))
    for name, tensor in whole.state()[0].items():
        assert torch.equal(second.state()[0][name], tensor), name


@pytest.mark.parametrize(("architecture", "family"), CASES)
def test_bfloat16_operands_change_losses_little_and_keep_float32_weights(
    architecture: str, family: str, with_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained(architecture, family)
    monkeypatch.setattr(precision, "reads_bfloat16", lambda device: True)
    ours, metrics = trained(architecture, family)
    torch.testing.assert_close(metrics, expected, rtol=0.03, atol=0.03)
    assert {tensor.dtype for name, tensor in ours.state()[0].items() if name.startswith("sae.W")} == {torch.float32}


def test_the_copy_in_bfloat16_follows_the_weights(with_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "reads_bfloat16", lambda device: True)
    learner, _ = trained("topk", "bands, shared")
    assert learner.ways == {"sparse"}
    sae = learner.sae
    for weights in (sae.W_enc, sae.W_dec):
        copy = precision.copy_of(weights)
        assert copy is not None
        # To the nearest number on a GPU; Triton's interpreter cuts digits off.
        torch.testing.assert_close(copy.float(), weights.detach(), rtol=torch.finfo(copy.dtype).eps, atol=0)
        with torch.no_grad():
            weights.mul_(2)
        assert precision.copy_of(weights) is None
        assert torch.equal(precision.bfloat16_copy(weights), weights.bfloat16())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu", "batch_topk", "gated", "matryoshka"])
def test_every_mask_and_architecture_trains_in_bf16(architecture: str, family: str) -> None:
    config = CONFIG.model_copy(update={"precision": "bf16"})
    learner = Learner(make_sae(architecture, FAMILIES[family]), config, n_steps=10)
    exact = Learner(make_sae(architecture, FAMILIES[family]), CONFIG, n_steps=10)
    batch = PositionedBatch(some_x(), EVERYWHERE)
    torch.testing.assert_close(learner.advance(batch), exact.advance(batch), rtol=0.05, atol=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in learner.sae.parameters())


@pytest.mark.parametrize(("name", "device", "resolved"), [("auto", "cpu", "float32"), ("bf16", "cpu", "bf16")])
def test_precision_is_resolved_for_the_device(name, device: str, resolved: str) -> None:
    assert precision.resolve_precision(name, torch.device(device)) == resolved


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(precision.ConfigError, match="tf32 needs an NVIDIA GPU"):
        precision.resolve_precision("tf32", torch.device("cpu"))
