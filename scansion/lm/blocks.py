"""The transformer blocks of a model: their number, from its configuration, and the list that holds them."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from scansion.errors import ModelError

# In this order: a model with an encoder calls the decoder's `decoder_layers`, and its `num_hidden_layers` is the encoder's.
# Configurations with another name for it, such as GPT-2's `n_layer`, have `num_hidden_layers` as well.
_LAYER_COUNTS = ("decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def layer_count(config: Any) -> int | None:
    """Number of blocks in the decoder, from a transformers configuration; None if it has no such setting."""
    text = config.get_text_config(decoder=True)
    counts = (getattr(text, name, None) for name in _LAYER_COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of the decoder's blocks, as many as the configuration says.

    Vision towers, encoders, draft heads and layers for predicting several tokens are lists of blocks too. The model's
    `get_decoder` and the length of the list exclude them. If several lists fit (a layer may have as many experts as the
    model has layers), the outermost is taken, and among those the one with the most parameters.

    Raises:
        ModelError: no list has the configuration's number of layers; says which lists there are.
    """
    config, get_decoder = getattr(model, "config", None), getattr(model, "get_decoder", None)
    expected = None if config is None else layer_count(config)
    decoder = cast(nn.Module, get_decoder()) if callable(get_decoder) else model
    lists = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == expected
    }
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has {expected or 'an unknown number of'} layers by its configuration, but no list of "
            f"so many blocks in its decoder (its lists of modules: {_described(model)}); Scansion cannot hook this model"
        )
    return min(lists.items(), key=lambda item: (item[0].count("."), -_size(item[1])))[1]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _described(model: nn.Module) -> str:
    """Every list of modules that is inside no other list: its name, its length, and the class of its items."""
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module)
            and not any(name.startswith(f"{outer}.") for outer in outermost)
        ):
            outermost[name] = module
    return ", ".join(f"{name} ({len(each)} of {type(each[0]).__name__})" for name, each in outermost.items()) or "none"
