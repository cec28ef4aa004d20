"""Cache of values that Python reads from GPU tensors: each reading waits for the GPU, so do it once per tensor."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Generic, TypeVar

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
