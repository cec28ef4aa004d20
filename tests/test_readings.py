"""A tensor on a GPU is read once, until it is written to; the CPU here stands for one."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import blocks
from scansion.masks import base
from scansion.readings import Reading, on_cpu, start_copy
from scansion.sae import SAE
from tests.execution.curves import losses_of
from tests.masks.families import EVERYWHERE, FAMILIES, NONE_DEAD, make_sae, some_x


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are remembered as if they did not lie on the CPU."""
    monkeypatch.setattr(Reading, "remembers", lambda reading, tensor: not tensor.is_inference())


def test_a_tensor_is_read_once_until_it_is_written_to(elsewhere: None) -> None:
    seen: list[list[int]] = []

    def total(tensor: torch.Tensor) -> int:
        seen.append(tensor.tolist())
        return int(tensor.sum())

    reading = Reading(total)
    tensor, other = torch.tensor([1, 2]), torch.tensor([1, 2])
    assert [reading(tensor), reading(tensor), reading(other)] == [3, 3, 3]
    assert len(seen) == 2
    tensor[0] = 5
    assert [reading(tensor), reading(tensor)] == [7, 7]
    assert seen == [[1, 2], [1, 2], [5, 2]]


def test_a_tensor_that_counts_no_writes_is_read_each_time(elsewhere: None) -> None:
    reading = Reading(lambda tensor: int(tensor.sum()))
    with torch.inference_mode():
        tensor = torch.tensor([1, 2])
        assert reading(tensor) == 3
        tensor[0] = 5
        assert reading(tensor) == 7


def test_what_was_read_is_forgotten_with_the_tensor(elsewhere: None) -> None:
    reading = Reading(len)
    for size in range(5):
        reading(torch.zeros(size))
    assert len(reading._known) <= 1


def test_numpy_may_write_to_what_lies_on_the_cpu() -> None:
    reading, tensor = Reading(lambda tensor: int(tensor.sum())), torch.tensor([1, 2])
    assert reading(tensor) == 3
    tensor.numpy()[0] = 5
    assert reading(tensor) == 7


@pytest.mark.parametrize("family", ["random_hard", "bands, shared", "static_slicing"])
def test_positions_are_read_at_the_first_step_alone(family: str, elsewhere: None, monkeypatch) -> None:
    """As many times in all as at the first of three steps, and with the losses of positions that are new each time."""
    read: list[int] = []
    for module, name in ((base, "_range_of"), (blocks, "_listed")):
        reading = getattr(module, name)
        counting = Reading(lambda tensor, reading=reading: read.append(len(tensor)) or reading._read(tensor))
        monkeypatch.setattr(module, name, counting)
    monkeypatch.setattr(base, "_lowest_and_highest", lambda positions: pytest.fail("read in passing"))

    def step(sae: SAE, positions: torch.Tensor) -> torch.Tensor:
        sae.mask.can_fire(positions)
        return losses_of(sae, some_x(n=3), positions, NONE_DEAD).reconstruction

    sae = make_sae("topk", FAMILIES[family]).train()
    first, at_first = step(sae, EVERYWHERE), len(read)
    assert [step(sae, EVERYWHERE) for _ in range(2)] == [first, first]
    assert len(read) == at_first > 0
    assert step(sae, EVERYWHERE.clone()) == first
    assert len(read) == 2 * at_first


def test_a_copy_that_was_begun_early_holds_what_the_tensor_held_and_is_not_used_after_a_write() -> None:
    tensor = torch.arange(3, device="cuda" if torch.cuda.is_available() else "cpu")
    start_copy(tensor)
    assert on_cpu(tensor).tolist() == [0, 1, 2] and on_cpu(tensor) is on_cpu(tensor)
    tensor += 1
    assert on_cpu(tensor).tolist() == [1, 2, 3] and on_cpu(tensor[1:]).tolist() == [2, 3]
