"""A training step holds parameters, gradients, Adam and one batch, and on the sparse path nothing of [batch, d_sae]."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scansion.activations import PositionedBatch
from scansion.execution import backends
from scansion.masks import BandMaskConfig, MaskConfig, NoMaskConfig
from scansion.sae import BatchTopKConfig, SAEConfig, TopKConfig, build_sae
from scansion.training import TrainingConfig
from scansion.training.learner import Learner

D_IN, D_SAE, K, POSITIONS = 64, 2048, 8, 32
CHUNK = 1 << 16


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operations have made and that are still there, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def peak_of_a_step(config: SAEConfig, per_position: int) -> int:
    """Bytes that a step adds, at its peak, to the parameters and to what Adam knows."""
    learner = Learner(
        build_sae(config, D_IN, POSITIONS, torch.Generator().manual_seed(0)),
        TrainingConfig(tokens=10**6, device="cpu"),
        1000,
    )
    x = torch.randn(POSITIONS, per_position, D_IN, generator=torch.Generator().manual_seed(1))
    batch = PositionedBatch(x / D_IN**0.5, torch.arange(POSITIONS))
    for _ in range(3):  # until Adam has its moments, and BatchTopK its threshold
        learner.advance(batch)
    with LiveBytes() as live:
        learner.advance(batch)
    return live.peak


@pytest.mark.parametrize("architecture", [TopKConfig, BatchTopKConfig])
@pytest.mark.parametrize("mask", [NoMaskConfig(), BandMaskConfig(count=4)], ids=["no mask", "bands"])
def test_the_peak_is_gradients_a_chunk_and_the_batch(
    architecture: type[TopKConfig] | type[BatchTopKConfig], mask: MaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "CHUNK", CHUNK)
    config = architecture(d_sae=D_SAE, k=K, mask=mask)
    peaks = []
    for per_position in (16, 64):
        tokens = POSITIONS * per_position
        gradients = 4 * 2 * D_IN * D_SAE
        chunk = 2 * 4 * CHUNK  # the product, and what is being selected from it
        of_batch = tokens * (4 * 6 * D_IN + 64 * K)  # x, residual and their gradients; entries with their indices
        counts = 3 * 8 * POSITIONS * D_SAE
        peak = peak_of_a_step(config, per_position)
        assert peak < 1.1 * (gradients + chunk + of_batch + counts)
        peaks.append(peak)
    grown = (peaks[1] - peaks[0]) / (POSITIONS * 48)
    assert grown < 4 * D_SAE / 2, f"{grown:.0f} bytes a token: that is half a row of d_sae"
