"""An own hook point: the hidden activations of the MLP, before they are projected back to the residual stream.

    scansion --plugin examples/hook_point.py harvest --hook-point mlp_hidden.5 ...

The activation that is read is the *input* of the MLP's last projection, whose name differs between model families. It is
wider than the residual stream, so the site says how wide.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from scansion.lm import hook_site

# Llama, Gemma, Qwen; GPT-NeoX (Pythia); and GPT-2.
LAST_PROJECTIONS = ("down_proj", "dense_4h_to_h", "c_proj")


def hidden_width(config: Any) -> int:
    """GPT-2 leaves its width out where it is four times that of the residual stream."""
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None)
    return inner or 4 * config.hidden_size


@hook_site("mlp_hidden", side="input", width=hidden_width)
def mlp_hidden(block: nn.Module) -> nn.Module:
    """From a transformer block to the module whose input is read."""
    projections = dict(block.mlp.named_children())
    return next(projections[name] for name in LAST_PROJECTIONS if name in projections)
