"""Any module of a model as a hook point, by its path: whether it is there, and what it returns, before weights are read."""

from __future__ import annotations

import re
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from scansion.errors import ModelError
from scansion.lm.facts import ModelFacts

# At least one dot; names of Python, or numbers in a list of modules. TransformerLens' names are none of these.
_PATH = re.compile(r"(?!blocks\.)[A-Za-z_]\w*(\.([A-Za-z_]\w*|[0-9]{1,9}))+", re.ASCII)
_SITE = re.compile(r"[a-z][a-z0-9_]*\.[0-9]+")
# What the model with a head calls the one without, in Llama, Gemma and Qwen, in GPT-NeoX and in GPT-2.
_PREFIX = re.compile(r"(?:model|gpt_neox|transformer)\.")
_BATCH, _LENGTH = 2, 5


def as_path(text: str) -> str | None:
    """The path of a module, seen from the model without its head; None if the text is none, as ``name.5`` is."""
    if not _PATH.fullmatch(text) or _SITE.fullmatch(text):
        return None
    return _PREFIX.sub("", text, count=1) if _PREFIX.match(text) and "." in _PREFIX.sub("", text, count=1) else text


def layer_in(path: str) -> int:
    """The first number in a path, which is that of the layer; 0 if there is none."""
    return int(next((part for part in path.split(".") if part.isdigit()), 0))


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        ModelError: there is none; says which have a similar path.
    """
    backbone = cast(nn.Module, getattr(model, "base_model", model))
    for root in (backbone, model):
        try:
            return root.get_submodule(path)
        except AttributeError:
            continue
    near = get_close_matches(path, [name for name, _ in backbone.named_modules()], n=3, cutoff=0.7)
    hint = f"; there are {', '.join(near)}" if near else ""
    raise ModelError(f"{type(model).__name__} has no module {path!r}{hint}")


@lru_cache(maxsize=32)
def width_at(facts: ModelFacts, path: str) -> int:
    """The width of what the module at a path returns, found on a copy of the model that has shapes but no weights.

    Raises:
        ModelError: there is no such module, the model does not run it, or it does not return activations [B, L, d].
    """
    import transformers

    # The plain way to compute attention: the others look at values, which such a copy does not have.
    with torch.device("meta"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(deepcopy(facts.config), attn_implementation="eager")
        module = module_at(cast(nn.Module, model), path)
        returned: list[Any] = []
        handle = module.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
        try:
            model.base_model(
                input_ids=torch.zeros(_BATCH, _LENGTH, dtype=torch.long),
                attention_mask=torch.ones(_BATCH, _LENGTH),
                use_cache=False,
            )
        except Exception as error:  # whatever a model does that needs values
            if not returned:
                raise ModelError(
                    f"the width at {path} of {facts.name} cannot be found without its weights; register a site with its "
                    "width (scansion.lm.hook_site)"
                ) from error
        finally:
            handle.remove()
    if not returned:
        raise ModelError(f"{facts.name} does not run {path} before its head; choose another module")
    output = returned[0][0] if isinstance(returned[0], tuple) else returned[0]
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != (_BATCH, _LENGTH):
        given = f"the shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelError(
            f"{path} of {facts.name} returns {given} for {_BATCH} contexts of {_LENGTH} tokens; expected activations "
            f"[{_BATCH}, {_LENGTH}, width]; choose another module"
        )
    return output.shape[2]
