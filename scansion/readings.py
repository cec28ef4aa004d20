"""Values that Python reads from GPU tensors. Each reading waits for the GPU: do it once per tensor, or copy it early."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class Reading(Generic[T]):
    """A cached function of one tensor. It is computed again after the tensor was written to.

    Args:
        read: must depend only on the tensor's values.
    """

    def __init__(self, read: Callable[[Tensor], T]) -> None:
        self._read = read
        self._known: MutableMapping[Tensor, tuple[int, T]] = WeakTensorKeyDictionary()

    def __call__(self, tensor: Tensor) -> T:
        if not self.remembers(tensor):
            return self._read(tensor)
        known = self._known.get(tensor)
        if known is None or known[0] != tensor._version:
            known = (tensor._version, self._read(tensor))
            self._known[tensor] = known
        return known[1]

    def remembers(self, tensor: Tensor) -> bool:
        """Whether values of this tensor are cached: reading it must be slow, and a write to it must be noticed.

        A CPU tensor is fast to read, and NumPy may write to it without changing its version.
        """
        return tensor.device.type != "cpu" and not tensor.is_inference()


class _Copy(NamedTuple):
    version: int
    tensor: Tensor
    done: torch.cuda.Event


_copies: MutableMapping[Tensor, _Copy] = WeakTensorKeyDictionary()


def start_copy(tensor: Tensor) -> None:
    """Begin to copy a tensor from a GPU, so that :func:`on_cpu` later waits for this copy alone.

    What Python queues between the two keeps the GPU busy while it waits.
    """
    if tensor.device.type == "cuda":
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(tensor.device))
        _copies[tensor] = _Copy(tensor._version, copy, done)


def on_cpu(tensor: Shaped[Tensor, "*size"]) -> Shaped[Tensor, "*size"]:
    """The tensor on the CPU, to be read only; a copy that :func:`start_copy` began, if nobody wrote to the tensor since."""
    if tensor.device.type == "cpu":
        return tensor
    copy = _copies.get(tensor)
    if copy is None or copy.version != tensor._version:
        return tensor.cpu()
    copy.done.synchronize()
    return copy.tensor


def to_device(tensor: Shaped[Tensor, "*size"], device: torch.device) -> Shaped[Tensor, "*size"]:
    """A CPU tensor on a device, without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
