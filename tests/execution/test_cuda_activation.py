"""Kernels for mask and activation give what torch's versions give in float64: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scansion.execution import activation as reference
from scansion.execution import backends, operations
from scansion.execution.activation import Activation
from scansion.execution.plan import Way
from tests.execution.curves import losses_of, require_same_as_dense
from tests.masks.families import EVERYWHERE, FAMILIES, NONE_DEAD, make_sae, some_x

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution.cuda import activation as kernels
from scansion.execution.cuda import kernels as all_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POSITIONS, PER_POSITION, WIDTH = 4, 5, 21
MASKS = ["none", "binary", "weights", "straight_through"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in each direction, for sizes that can be interpreted."""
    for name, size in (("FEATURES", 16), ("TOKENS", 4), ("GROUP", 6), ("ENTRIES", 4), ("POSITIONS", 2)):
        monkeypatch.setattr(kernels, name, size)


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is made of Triton kernels, whatever the device."""
    monkeypatch.setattr(backends, "BACKENDS", [replace(backends.BACKENDS[1], module_for=lambda *tensors: all_kernels)])


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def make_activation(mask: str, has_threshold: bool) -> Activation:
    """With weights of 0 and features closed at a position; thresholds near most pre-activations."""
    weights = draw(POSITIONS, WIDTH, seed=1).sigmoid()
    weights[1, ::3] = 0
    closed = weights < 0.4
    return Activation(
        PER_POSITION,
        closed if mask in ("binary", "straight_through") else None,
        weights if mask in ("weights", "straight_through") else None,
        0.2 + draw(WIDTH, seed=2).sigmoid() if has_threshold else None,
        0.7,
    )


def in_float64(activation: Activation) -> Activation:
    weights, threshold = activation.weights, activation.threshold
    return replace(
        activation,
        weights=None if weights is None else weights.double(),
        threshold=None if threshold is None else threshold.double(),
    )


@pytest.mark.parametrize("has_threshold", [False, True], ids=["relu", "jumprelu"])
@pytest.mark.parametrize("mask", MASKS)
def test_they_activate_and_give_gradients_as_torch_in_float64(mask: str, has_threshold: bool) -> None:
    activation = make_activation(mask, has_threshold)
    pre_acts, to_acts = draw(POSITIONS * PER_POSITION, WIDTH, seed=3), draw(POSITIONS * PER_POSITION, WIDTH, seed=4)
    to_count = draw(1, seed=5)[0]
    exact = reference._activate(pre_acts.double(), in_float64(activation))
    expected = reference._activate_backward(
        to_acts.double(), exact.acts, exact.kept, in_float64(activation), to_count.double()
    )
    found = kernels.activate(pre_acts.clone(), activation)
    gradients = kernels.activate_backward(to_acts.clone(), found.acts, found.kept, activation, to_count)
    assert torch.equal(found.fired, exact.fired)
    torch.testing.assert_close((found.acts, found.activity), (exact.acts.float(), exact.activity.float()))
    assert (expected.to_threshold is None) == (not has_threshold)
    assert (expected.to_weights is None) == (mask in ("none", "binary"))
    for ours, theirs in zip(gradients, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs.float())


@pytest.mark.parametrize("has_threshold", [False, True], ids=["relu", "jumprelu"])
@pytest.mark.parametrize("mask", MASKS)
def test_in_bfloat16_they_add_up_in_float32(mask: str, has_threshold: bool) -> None:
    """Powers of two, which bfloat16 holds exactly, and sums that it does not."""
    activation = make_activation(mask, has_threshold)
    if activation.weights is not None:
        activation = replace(activation, weights=activation.weights.gt(0.4).float())
    pre_acts = 2.0 ** draw(POSITIONS * PER_POSITION, WIDTH, seed=3).round()
    to_acts = 2.0 ** draw(POSITIONS * PER_POSITION, WIDTH, seed=4).round()
    results: list[list[torch.Tensor]] = []
    for dtype in (torch.float32, torch.bfloat16):
        out = kernels.activate(pre_acts.to(dtype, copy=True), activation)
        gradients = kernels.activate_backward(
            to_acts.to(dtype, copy=True), out.acts, out.kept, activation, draw(1, seed=5)[0]
        )
        results.append([tensor for tensor in (*out, *gradients) if tensor is not None])
    assert results[1][0].dtype == torch.bfloat16
    for exact, rounded in zip(*results, strict=True):
        assert torch.equal(exact.float(), rounded.float())


@pytest.mark.parametrize("mask", MASKS[1:])
def test_a_mask_alone_is_applied_in_place(mask: str) -> None:
    activation, pre_acts = make_activation(mask, False), draw(POSITIONS * PER_POSITION, WIDTH, seed=3)
    expected = pre_acts.clone()
    reference._apply_mask(expected, activation)
    kernels.apply_mask(pre_acts, activation)
    torch.testing.assert_close(pre_acts, expected)


@pytest.mark.parametrize("has_threshold", [False, True], ids=["relu", "jumprelu"])
def test_a_nan_is_not_hidden(has_threshold: bool) -> None:
    pre_acts = draw(POSITIONS * PER_POSITION, WIDTH)
    pre_acts[3, 2] = torch.nan
    out = kernels.activate(pre_acts, make_activation("none", has_threshold))
    assert out.acts.isnan().sum() == 1 and out.activity.isnan()


def test_values_are_added_up_per_feature_and_position() -> None:
    """With features that have no entry, and entries left out at the end."""
    n, d_sae = POSITIONS * PER_POSITION, 7
    features = torch.randint(d_sae - 1, (3 * n,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    values, tokens = draw(3 * n), torch.arange(3 * n, device=DEVICE) // 3
    order = features.argsort(stable=True)
    counts = torch.bincount(features, minlength=d_sae)
    entries = order, tokens[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    found = kernels.sum_per_position(values, entries, PER_POSITION, POSITIONS)
    exact = values.new_zeros(POSITIONS, d_sae, dtype=torch.float64)
    exact.index_put_((tokens // PER_POSITION, features), values.double(), accumulate=True)
    torch.testing.assert_close(found, exact.float())
    torch.testing.assert_close(operations._sum_per_position(values, entries, PER_POSITION, POSITIONS), exact.float())


@pytest.mark.parametrize(
    ("architecture", "mask", "way"),
    [
        ("relu", "random_hard", "fused"),
        ("relu", "bands, shared", "fused"),
        ("relu", "soft, shared", "fused"),
        ("relu", "adaptive", "fused"),
        ("jumprelu", "static_slicing", "fused"),
        ("jumprelu", "importance", "fused"),
        ("jumprelu", "adaptive", "fused"),
        ("topk", "soft, at temperature 0", "sparse"),
        ("topk", "importance", "sparse"),
        ("topk", "adaptive", "sparse"),
    ],
)
def test_a_step_is_that_of_the_dense_form(
    architecture: str, mask: str, way: Way, with_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "returns_first_product", lambda device: True)
    fast, dense = (make_sae(architecture, FAMILIES[mask]).train().to(DEVICE) for _ in range(2))
    x, positions, dead = (tensor.to(DEVICE) for tensor in (some_x(n=3), EVERYWHERE, NONE_DEAD))
    found = losses_of(fast, x, positions, dead, way=way)
    require_same_as_dense(found, losses_of(dense, x, positions, dead, way="dense"), fast, dense)
