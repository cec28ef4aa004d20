"""The law of execution: every way that is open gives the dense way's losses, gradients, counts and statistics.

For all architectures, those of a user's own included, under all masks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.execution import backends
from scansion.execution.plan import open_ways, plan_execution
from scansion.masks import MASKS, MaskConfig
from scansion.sae import ARCHITECTURES as REGISTERED
from scansion.sae import SAE, BatchTopKConfig, BatchTopKSAE, ForwardPass, ReluConfig, ReluSAE, TopKConfig, TopKSAE
from tests.execution.curves import losses_of, require_same_as_dense
from tests.execution.test_sparse import MASKS as SOME_ACT_ELSEWHERE
from tests.execution.test_sparse import SOME_DEAD
from tests.masks.families import ARCHITECTURES, D_IN, D_SAE, EVERYWHERE, FAMILIES, WINDOWED, L, make_sae, some_x

EVERY_MASK: dict[str, MaskConfig] = {**FAMILIES, **SOME_ACT_ELSEWHERE}


class Constant(ReluSAE):
    """Losses that read nothing."""

    def sparsity_loss(self, forward: ForwardPass) -> Tensor:
        return torch.tensor(5.0)

    def auxiliary_loss(self, forward: ForwardPass, dead: Tensor) -> Tensor:
        return torch.tensor(7.0)


class ReadsEverything(SAE):
    """Losses that read every activation and pre-activation, their gradient included, and a statistic."""

    def sparsity_loss(self, forward: ForwardPass) -> Tensor:
        return sum((part.acts.square().sum() for part in forward.parts), torch.zeros(())) / forward.n_tokens

    def auxiliary_loss(self, forward: ForwardPass, dead: Tensor) -> Tensor:
        total = torch.zeros(())
        for part in forward.parts:
            total = total + (part.pre_acts.sigmoid() * part.block.of_features(dead)).sum() + part.pre_acts.relu().sum()
        return total / forward.n_tokens

    def reconstruction_loss(self, forward: ForwardPass) -> Tensor:
        return forward.residual.abs().sum() / forward.n_tokens

    def after_forward(self, forward: ForwardPass) -> None:
        self.register_buffer("seen", torch.stack([values.sum() for values in forward.values]).sum())


class ReluThatReads(ReadsEverything, ReluSAE):
    """On the fused and the sparse way."""


class TopKThatReads(ReadsEverything, TopKSAE):
    """On the sparse way."""


class SquaredRelu(ReluSAE):
    """An activation of its own, of which the selection that it inherits knows nothing."""

    def activate(self, pre_acts: Tensor, features: Tensor | None = None) -> Tensor:
        return pre_acts.relu().square() / 4


class LoneBatchTopK(BatchTopKSAE):
    """Derived from one that activates all bands together, by its own rule for a single block."""

    def activate(self, pre_acts: Tensor, features: Tensor | None = None) -> Tensor:
        return pre_acts.relu()


def relu(kind: type[SAE]) -> Callable[[MaskConfig], SAE]:
    return lambda mask: built(kind, ReluConfig(d_sae=D_SAE, mask=mask))


def built(kind: type[SAE], config) -> SAE:
    sae = kind(config, D_IN, L, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.add_(0.1)
    return sae


OWN: dict[str, Callable[[MaskConfig], SAE]] = {
    "constant": relu(Constant),
    "relu that reads": relu(ReluThatReads),
    "topk that reads": lambda mask: built(TopKThatReads, TopKConfig(d_sae=D_SAE, k=5, mask=mask)),
    "squared relu": relu(SquaredRelu),
    "lone batch_topk": lambda mask: built(LoneBatchTopK, BatchTopKConfig(d_sae=D_SAE, k=5, mask=mask)),
}
MAKE: dict[str, Callable[[MaskConfig], SAE]] = {
    **{name: (lambda mask, name=name: make_sae(name, mask)) for name in ARCHITECTURES | WINDOWED},
    **OWN,
}


def test_every_registered_mask_and_architecture_is_among_them() -> None:
    assert {mask.family for mask in EVERY_MASK.values()} >= set(MASKS.names()) - {"permuted"}
    assert set(ARCHITECTURES | WINDOWED) >= set(REGISTERED.names()) - {
        "tsae"
    }  # needs pairs: see tests/sae/test_matryoshka.py


@pytest.mark.parametrize("positions", [EVERYWHERE, EVERYWHERE[1:], EVERYWHERE[5:8]], ids=["all", "not 0", "few"])
@pytest.mark.parametrize("mask", EVERY_MASK)
@pytest.mark.parametrize("architecture", MAKE)
def test_every_open_way_gives_the_numbers_of_the_dense_one(architecture: str, mask: str, positions: Tensor) -> None:
    x = MAKE[architecture](EVERY_MASK[mask]).read_batch(PositionedBatch(some_x(n=7), EVERYWHERE)).x[positions]
    for way in open_ways(MAKE[architecture](EVERY_MASK[mask]).train()):
        fast, dense = (MAKE[architecture](EVERY_MASK[mask]).train() for _ in range(2))
        losses = losses_of(fast, x, positions, SOME_DEAD, way=way)
        assert losses.way == way
        require_same_as_dense(losses, losses_of(dense, x, positions, SOME_DEAD, way="dense"), fast, dense)


@pytest.mark.parametrize("mask", EVERY_MASK)
def test_losses_of_ones_own_count_on_every_way(mask: str) -> None:
    sae = MAKE["constant"](EVERY_MASK[mask]).train()
    for way in open_ways(sae):
        losses = losses_of(sae, some_x(n=7), EVERYWHERE, SOME_DEAD, way=way)
        assert (losses.sparsity.item(), losses.auxiliary.item()) == (5.0, 7.0)


@pytest.mark.parametrize(
    ("architecture", "mask", "expected"),
    [
        ("relu", "none", {"dense", "sparse", "fused"}),
        ("relu", "bands", {"dense", "banded", "sparse", "fused"}),
        ("relu", "soft", {"dense", "sparse", "fused"}),
        ("topk", "adaptive", {"dense", "sparse"}),
        ("topk", "none", {"dense", "sparse"}),
        ("topk", "bands, shared", {"dense", "banded", "sparse"}),
        ("batch_topk", "bands", {"dense", "banded", "sparse"}),
        ("jumprelu", "none", {"dense", "fused"}),
        ("jumprelu", "bands", {"dense", "banded", "fused"}),
        ("gated", "bands", {"dense", "banded"}),
        ("matryoshka", "bands", {"dense", "banded", "sparse"}),
        ("switch", "none", {"dense", "routed"}),
        ("switch", "bands", {"dense"}),
        ("relu that reads", "bands", {"dense", "banded", "sparse", "fused"}),
        ("squared relu", "bands", {"dense", "banded"}),
        ("lone batch_topk", "bands", {"dense"}),
    ],
)
def test_ways_are_open_where_the_mask_and_the_architecture_allow_them(architecture, mask, expected) -> None:
    assert set(open_ways(MAKE[architecture](EVERY_MASK[mask]).train())) == expected


@pytest.mark.parametrize(
    ("architecture", "mask", "density", "way"),
    [
        ("relu", "none", 1.0, "sparse"),
        ("relu", "none", 0.1, "fused"),
        ("topk", "bands", 1.0, "sparse"),
        ("topk", "bands", 0.1, "banded"),
        ("topk", "none", 0.1, "dense"),
        ("switch", "none", 1.0, "routed"),
        ("topk", "soft", 1.0, "sparse"),
        ("topk", "soft", 0.1, "dense"),
        ("batch_topk", "adaptive", 1.0, "sparse"),
        ("relu", "adaptive", 1.0, "fused"),
        ("jumprelu", "none", 1.0, "fused"),
        ("jumprelu", "bands", 1.0, "fused"),
        ("gated", "none", 1.0, "dense"),
        ("gated", "bands", 1.0, "banded"),
    ],
)
def test_the_way_taken_is_the_one_that_the_plan_names(architecture, mask, density, way, monkeypatch) -> None:
    monkeypatch.setattr(backends, "DENSITY", density)
    monkeypatch.setattr(backends, "RELU_DENSITY", density)
    sae = MAKE[architecture](EVERY_MASK[mask]).train()
    plan = plan_execution(sae, PositionedBatch(some_x(n=7), EVERYWHERE))
    assert way in (plan.way, plan.otherwise) and plan.device == "cpu" and plan.reason
    assert losses_of(sae, some_x(n=7), EVERYWHERE, SOME_DEAD).way == way
