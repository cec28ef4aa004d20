"""A training step on CUDA does not wait for the GPU. The CPU here stands for one; operations that would wait are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from triton.runtime.interpreter import GridExecutor

from scansion.activations import PositionedBatch
from scansion.execution import backends, blocks, operations
from scansion.execution.cuda import kernels, top_k
from scansion.masks import NoMaskConfig
from scansion.readings import Reading
from scansion.sae.architectures import matryoshka, topk
from scansion.training import TrainingConfig
from scansion.training.learner import Learner
from tests.masks.families import D_SAE, EVERYWHERE, FAMILIES, L, make_sae, some_x

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted only without a GPU")
CONFIG = TrainingConfig(tokens=10 * 4 * L, batch_tokens=4 * L, lr=0.01, dead_after_tokens=16 * L)
MASKS = {"none": NoMaskConfig(), **FAMILIES}
aten = torch.ops.aten
# Their result, or its size, is known only once the GPU has computed it.
WAIT = {
    aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal, aten.masked_select, aten.bincount,
    aten.unique_consecutive, aten.unique_dim, aten._unique, aten._unique2, aten.lift_fresh,
}  # fmt: skip


class _NoWaiting(TorchDispatchMode):
    """Every tensor is taken to be on a GPU, except results of :meth:`on_cpu` and what is computed from these alone."""

    def __init__(self) -> None:
        super().__init__()
        self._on_cpu: Any = WeakTensorKeyDictionary()

    def on_cpu(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, copied early to the CPU."""
        with _disable_current_modes():
            copy = tensor.clone()
        self._on_cpu[copy] = True
        return copy

    def to_device(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The tensor on the GPU."""
        with _disable_current_modes():
            return tensor.clone()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_cpu = bool(tensors) and all(tensor in self._on_cpu for tensor in tensors)
        assert on_cpu or not self._waits(func, args, kwargs), f"{func} would wait for the GPU"
        result = func(*args, **kwargs)
        if on_cpu:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._on_cpu[leaf] = True
        return result

    def _waits(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        packet = func.overloadpacket
        if packet in (aten.index, aten.index_put, aten.index_put_):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if packet is aten.repeat_interleave and func is not aten.repeat_interleave.self_int:
            return kwargs.get("output_size") is None
        return packet in WAIT


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> _NoWaiting:
    """The CPU is taken for a GPU on which the kernels work."""
    mode = _NoWaiting()
    for module, name, value in (
        (backends, "kernels_for", lambda device, dtype: kernels),
        (backends, "batches_bands", lambda device: True),
        (backends, "BACKENDS", [replace(backends.BACKENDS[1], module_for=lambda *tensors: kernels)]),
        (backends, "DENSITY", 1.0),
        (operations, "count", lambda places, n, counted=None: operations._count_without_waiting(places, n, counted)),
        (Reading, "remembers", lambda reading, tensor: True),
        (blocks, "_features_on_cpu", Reading(mode.on_cpu)),
        (topk, "on_cpu", mode.on_cpu),
        (topk, "to_device", mode.to_device),
        (matryoshka, "to_device", mode.to_device),
        (top_k, "GROUPS", 32),
    ):
        monkeypatch.setattr(module, name, value)
    run = GridExecutor.__call__

    def interpreted(*args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            run(*args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", interpreted)
    return mode


@pytest.mark.parametrize(
    ("architecture", "mask", "n_dead", "way"),
    [
        ("topk", "random_hard", 0, "sparse"),
        ("topk", "bands, shared", 5, "sparse"),
        ("topk", "adaptive", 5, "sparse"),
        ("batch_topk", "none", D_SAE, "sparse"),
        ("batch_topk", "static_slicing", 5, "sparse"),
        ("batch_topk", "soft", 0, "sparse"),
        ("jumprelu", "bands", 0, "fused"),
    ],
)
def test_a_step_waits_for_nothing(architecture: str, mask: str, n_dead: int, way: str, mode: _NoWaiting) -> None:
    """After the first step, which caches what stays the same."""
    learner = Learner(make_sae(architecture, MASKS[mask]), CONFIG, n_steps=10)
    for step in range(2):
        learner.dead.tokens_since_fired[:n_dead] = CONFIG.dead_after()
        batch = PositionedBatch(some_x(step), EVERYWHERE)
        if step:
            with mode:
                metrics = learner.advance(batch)
            assert learner.ways == {way} and metrics.isfinite().all()
            assert (metrics[3] > 0) == (n_dead > 0)
        else:
            learner.advance(batch)


def test_what_would_wait_is_noticed(mode: _NoWaiting) -> None:
    x = torch.arange(3)
    with mode:
        for wait in (
            lambda: int(x[0]),
            x.nonzero,
            lambda: x[x > 1],
            lambda: torch.tensor([1]),
            lambda: bool((x > 1).any()),
        ):
            with pytest.raises(AssertionError, match="would wait"):
                wait()
        assert int(mode.on_cpu(x).sum()) == 3
