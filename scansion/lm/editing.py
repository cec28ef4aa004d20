"""Read or change the activation at a hook point while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from scansion.lm.hook_points import HookPoint


class Edited:
    """Within a ``with`` block, pass the activation at a hook point through ``function``; the hook is gone after it.

    Args:
        model: a transformers model.
        hook_point: where.
        function: from the activation [B, L, d] to what goes on in its place.

    Raises:
        ModelError: the model has no such layer or part.
    """

    def __init__(self, model: nn.Module, hook_point: HookPoint, function: Callable[[Tensor], Tensor]) -> None:
        module = hook_point.module(model)
        if hook_point.kind.side == "input":
            self._handle = module.register_forward_pre_hook(self._on_input, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(self._on_output)
        self._function = function

    def _on_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self._function(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._function(kwargs["hidden_states"])}

    def _on_output(self, _: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._function(output[0]), *output[1:])
        return self._function(output)

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None:
        self._handle.remove()
