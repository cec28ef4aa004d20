"""Sites: the places in a transformer block where activations can be hooked. :func:`hook_site` adds a new one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from scansion.errors import ConfigError, ModelError
from scansion.registry import load_plugins

FindModule = Callable[[nn.Module], nn.Module]
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """A place that exists in every block.

    Attributes:
        name: as in the hook point ``name.5``.
        module: from a block to the module that is hooked; for the path of a module, from the model.
        side: whether the activation is that module's first input or its (first) output.
        width: from the model's configuration to the activation's width; None if it is the residual stream's.
    """

    name: str
    module: FindModule
    side: Side
    width: Callable[[Any], int] | None


_SITES: dict[str, Site] = {}


def hook_site(
    name: str, side: Side = "output", width: Callable[[Any], int] | None = None
) -> Callable[[FindModule], FindModule]:
    """Decorator of a function from a transformer block to the module to hook.

    Args:
        name: lower-case letters, digits and underscores; ``--hook-point name.5`` is then the site in block 5.
        side: read the module's ``input`` or its ``output``.
        width: from the model's transformers configuration to the width of the activation; default the hidden size.

    Raises:
        ConfigError: the name is taken, or has other characters in it.

    Example:
        >>> @hook_site("attn_norm")
        ... def attn_norm(block):
        ...     return block.input_layernorm
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"a hook site cannot be called {name!r}; use lower-case letters, digits and underscores")

    def keep(module: FindModule) -> FindModule:
        taken = _SITES.get(name)
        origin = module.__module__, module.__qualname__
        if taken is not None and (taken.module.__module__, taken.module.__qualname__) != origin:
            raise ConfigError(f"there is a hook site called {name!r} already; choose another name")
        _SITES[name] = Site(name, module, side, width)
        return module

    return keep


def find_site(name: str) -> Site | None:
    """The site with this name, those of plugins included; None if there is none."""
    if name not in _SITES:
        load_plugins("scansion.hook_points")
    return _SITES.get(name)


def site_names() -> list[str]:
    """All names, in the order of registration."""
    load_plugins("scansion.hook_points")
    return list(_SITES)


def child_of(block: nn.Module, *names: str) -> nn.Module:
    """The first of a module's children with one of these names.

    Raises:
        ModelError: it has none of them; the message lists what it has.
    """
    children = dict(block.named_children())
    for name in names:
        if name in children:
            return children[name]
    raise ModelError(f"{type(block).__name__} has no {' or '.join(names)}; its parts are {sorted(children)}")


@hook_site("resid_pre", side="input")
def _residual_before(block: nn.Module) -> nn.Module:
    return block


@hook_site("resid_post")
def _residual_after(block: nn.Module) -> nn.Module:
    return block


# Some families normalise what a sublayer returns before they add it: Gemma 2 and 3, OLMo 2 and EXAONE 4 in
# `post_attention_layernorm` and `post_feedforward_layernorm`, GLM-4 in `post_self_attn_layernorm` and `post_mlp_layernorm`.
# Elsewhere `post_attention_layernorm` is the norm before the MLP. Whether the place found is right for the model at hand is
# tried out on a few tokens: see scansion.lm.forward.check_parts.
@hook_site("attn_out")
def _added_by_attention(block: nn.Module) -> nn.Module:
    normed = ("post_attention_layernorm",) if hasattr(block, "post_feedforward_layernorm") else ()
    return child_of(block, "post_self_attn_layernorm", *normed, "self_attn", "attention", "attn", "self_attention")


@hook_site("mlp_out")
def _added_by_mlp(block: nn.Module) -> nn.Module:
    return child_of(block, "post_mlp_layernorm", "post_feedforward_layernorm", "mlp")
