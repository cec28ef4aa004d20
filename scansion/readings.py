"""What Python has read from a tensor on a GPU, remembered while the tensor lives unchanged: no need to wait for it again."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class Reading(Generic[T]):
    """A function of one tensor, computed once for each tensor that :meth:`remembers`, and again once it was written to.

    Args:
        read: must depend on the tensor's values alone.
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
        """Whether a write to this tensor would be noticed, and reading it again would take long.

        What lies on the CPU is read at once, and may be written to by NumPy, unnoticed.
        """
        return tensor.device.type != "cpu" and not tensor.is_inference()
