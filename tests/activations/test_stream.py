"""Batches depend on the seed and the step alone, give every position its share, and never mix positions up."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from scansion.activations import ActivationStream
from scansion.errors import ShapeError, StoreError
from tests.conftest import random_contexts


def rows_of(batch) -> list[list[float]]:
    return batch.x.flatten(0, 1).tolist()


def test_batches_do_not_depend_on_shards_memory_or_order_of_asking(make_store) -> None:
    contexts = random_contexts(40, shortest=4)
    one = make_store(contexts, "one", shard_bytes=10**9)
    many = make_store(contexts, "many", shard_bytes=2_000)
    assert len(many.manifest.shards) > 5 and len(one.manifest.shards) == 1
    reference = [ActivationStream(one, 3, seed=1, in_memory=True).batch(step).x for step in range(30)]
    for store in (one, many):
        for in_memory in (True, False):
            stream = ActivationStream(store, 3, seed=1, in_memory=in_memory)
            assert torch.equal(stream.batch(17).x, reference[17])
            for ahead in (True, False):
                for step, batch in enumerate(stream.batches(5, 30, ahead), 5):
                    assert torch.equal(batch.x, reference[step])


def test_another_seed_gives_another_order(store) -> None:
    assert not torch.equal(ActivationStream(store, 3, seed=1).batch(0).x, ActivationStream(store, 3, seed=2).batch(0).x)


def test_every_row_is_an_activation_of_its_own_position(store) -> None:
    stream = ActivationStream(store, 4, seed=0, use_position_0=True)
    acts = store.contexts(0, store.n_contexts).x
    for step in range(3):
        batch = stream.batch(step)
        for row, position in zip(batch.x, batch.positions, strict=True):
            known = acts[position, store.valid[position]]
            assert all((known == token).all(dim=1).any() for token in row)


def test_an_epoch_shows_every_activation_once(store) -> None:
    stream = ActivationStream(store, 1, seed=3)
    for index, position in enumerate(stream.positions.tolist()):
        n = int(store.count[position])
        for epoch in range(2):
            seen = Counter(tuple(stream.batch(epoch * n + i).x[index, 0].tolist()) for i in range(n))
            stored = store.contexts(0, store.n_contexts).x[position, store.valid[position]]
            assert seen == Counter(tuple(row) for row in stored.tolist())


@pytest.mark.parametrize("in_memory", [True, False])
def test_previous_tokens_are_those_just_before_and_change_nothing_else(store, in_memory: bool) -> None:
    stream = ActivationStream(store, 4, seed=0, in_memory=in_memory, n_previous=1)
    acts = store.contexts(0, store.n_contexts).x
    batch = stream.batch(2)
    assert torch.equal(batch.x, ActivationStream(store, 4, seed=0).batch(2).x)
    for row, before, position in zip(batch.x[1:], batch.previous[0], batch.positions[1:], strict=True):
        contexts = [(acts[position] == token).all(dim=1).nonzero()[0, 0] for token in row]
        assert torch.equal(before, acts[position - 1, torch.stack(contexts)])


def test_tokens_of_a_context_do_not_travel_together(store) -> None:
    stream = ActivationStream(store, 1, seed=0)
    full = store.valid.all(dim=0).nonzero().squeeze(1)
    contexts = store.contexts(0, store.n_contexts).x[1:, full].transpose(0, 1)
    batches = torch.stack([stream.batch(step).x[:, 0] for step in range(50)])
    assert not any(torch.equal(batch, context) for batch in batches for context in contexts)


def test_position_0_is_left_out_unless_asked_for(store) -> None:
    assert ActivationStream(store, 2, seed=0).positions.tolist() == list(range(1, store.n_positions))
    assert ActivationStream(store, 2, seed=0, use_position_0=True).positions.tolist() == list(range(store.n_positions))


def test_scaling_gives_unit_mean_norm(store) -> None:
    stream = ActivationStream(store, 1, seed=0)
    norms = [store.contexts(0, 60).x[p, store.valid[p]].norm(dim=1).mean() for p in stream.positions]
    assert stream.input_scale * torch.stack(norms).mean().item() == pytest.approx(1.0)


def test_an_error_while_preparing_reaches_the_consumer(store, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ActivationStream(store, 2, seed=0)
    monkeypatch.setattr(stream, "_contexts_at", lambda step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream.batches(0, 5, ahead=True))


def test_a_store_of_bos_alone_has_nothing_to_stream(make_store) -> None:
    with pytest.raises(StoreError, match="no valid token beyond position 0"):
        ActivationStream(make_store(random_contexts(3, length=1), "bos"), 1, seed=0)


def test_gather_names_the_shape_it_wants(store, as_users_run_it) -> None:
    with pytest.raises(ShapeError, match=r"contexts should have shape \[P=2 n\] but has \[3, 1\]"):
        store.gather(torch.tensor([1, 2]), torch.zeros(3, 1, dtype=torch.int64))


class _Stream:
    """Stands for a CUDA stream where there is none; records what was ordered after what."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.log: list[str] = []

    def record_event(self) -> str:
        return "copied"

    def wait_event(self, event: str) -> None:
        self.log.append(event)


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_copied_on_a_stream_are_those_read_directly(
    store, in_memory: bool, monkeypatch: pytest.MonkeyPatch, as_users_run_it
) -> None:
    """The way of a GPU that cannot hold the store, carried out on the CPU."""
    training = _Stream()
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **others: empty(*args, **others))

    direct = ActivationStream(store, 3, seed=1, n_previous=1)
    copied = ActivationStream(store, 3, seed=1, n_previous=1, in_memory=in_memory)
    monkeypatch.setattr(copied, "device", torch.device("cpu", 0))  # another name of the CPU: the store is not on it
    monkeypatch.setattr(copied, "_copying", _Stream())
    for step, batch in enumerate(copied.batches(0, 20, ahead=True)):
        assert batch.previous
        assert torch.equal(batch.x, direct.batch(step).x) and torch.equal(
            batch.previous[0], direct.batch(step).previous[0]
        )
        assert batch.x.dtype == torch.float32
    assert training.log == ["copied"] * 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("in_memory", [None, False])
def test_a_gpu_gets_the_same_batches(
    store, share: float, in_memory: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.activations.stream.GPU_MEMORY_SHARE", share)
    cpu = ActivationStream(store, 3, seed=1, n_previous=1)
    gpu = ActivationStream(store, 3, seed=1, n_previous=1, in_memory=in_memory, device=torch.device("cuda"))
    for ahead in (True, False):
        for step, batch in enumerate(gpu.batches(0, 50, ahead)):
            expected = cpu.batch(step).scaled(cpu.input_scale)
            batch = batch.scaled(gpu.input_scale)
            assert batch.previous and batch.x.is_cuda and batch.positions.is_cuda
            assert torch.equal(batch.x.cpu(), expected.x) and torch.equal(batch.previous[0].cpu(), expected.previous[0])
