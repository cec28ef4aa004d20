"""A second device for tests on machines without a GPU: tensors that compute like the CPU's and mix with them like a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from scansion.execution import backends


class _Elsewhere(Tensor):
    """A tensor on the fake device; its numbers are on the CPU."""


# What may read CPU tensors with one of the device's: copies, and indices.
_MIXES = {"to", "copy_", "__getitem__", "__setitem__"}
_TO_NUMPY = {"numpy", "__array__", "data_ptr"}


class FakeDevice(TorchFunctionMode):
    """While it is active, ``device`` exists, and what a GPU refuses is refused.

    Mixing tensors of both devices, NumPy arrays of its tensors, and float64 on MPS raise :class:`TypeError`.

    Args:
        device: the name it goes by, ``cuda`` or ``mps``.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":  # no tensors; _parse_to reads the arguments of Module.to
            return func(*args, **kwargs)
        if name == "__get__":
            return self._attribute(func, args[0])
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in given if not isinstance(each, _Elsewhere)]
        there = len(here) < len(given)
        if name == "_has_compatible_shallow_copy_type":  # whether Module.to may keep the parameter and change its data
            return not there
        if there and name in _TO_NUMPY:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        if there and name not in _MIXES and any(each.ndim > 0 for each in here):
            raise TypeError(f"{name}: expected all tensors to be on the same device, but found {self.device} and cpu")
        if there and name in ("__getitem__", "__setitem__") and not isinstance(args[0], _Elsewhere):
            raise TypeError(f"{name}: a tensor of the CPU is indexed by one on {self.device}")
        goes_there = self._goes_there(name, args, kwargs, there)
        first = args[0] if args else None
        args, kwargs = tree_map(self._on_cpu, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(first, Tensor) and result is args[0]:
            if goes_there == isinstance(first, _Elsewhere):
                return first  # unchanged, or changed in place
            result = result.clone()  # no memory is shared between devices
        return tree_map(self._moved, result) if goes_there else result

    def _attribute(self, func: Any, tensor: Tensor) -> Any:
        attribute = func.__self__.__name__
        if not isinstance(tensor, _Elsewhere):
            return func(tensor)
        if attribute == "device":
            return self.device
        if attribute in ("is_cpu", "is_cuda", "is_mps"):
            return attribute == f"is_{self.device.type}"
        value = func(tensor.as_subclass(Tensor))
        return self._moved(value) if isinstance(value, Tensor) else value

    def _goes_there(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], there: bool) -> bool:
        """Whether a call's result is on the device: where the call says so, else where its tensors are."""
        if name == "cpu":
            return False
        named = kwargs.get("device")
        if name == "to":
            named = next((each for each in args[1:] if isinstance(each, str | torch.device | Tensor)), named)
        if isinstance(named, Tensor):
            return isinstance(named, _Elsewhere)
        return there if named is None else torch.device(named) == self.device

    def _on_cpu(self, value: Any) -> Any:
        if isinstance(value, _Elsewhere):
            return value.as_subclass(Tensor)
        is_device = isinstance(value, str | torch.device) and str(value) == str(self.device)
        return torch.device("cpu") if is_device else value

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, _Elsewhere):
            return value
        if self.device.type == "mps" and value.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return value.as_subclass(_Elsewhere)


@contextmanager
def fake_device(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, which has no kernels of its own."""
    monkeypatch.setattr(backends, "_triton_on", lambda device: None)
    monkeypatch.setattr(backends, "entries_at_once", lambda device: backends.CHUNK)
    with FakeDevice(name) as mode:
        yield mode.device
