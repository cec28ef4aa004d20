"""Hook points: places in a decoder where activations are read or replaced, named as HF or TransformerLens names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from scansion.errors import ModelError
from scansion.lm.blocks import decoder_blocks

Site = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]

# Every accepted spelling, for layer 5. HF prefixes are those of Llama, Gemma, Qwen, GPT-NeoX and GPT-2.
_SPELLINGS: tuple[tuple[re.Pattern[str], Site | None], ...] = (
    (re.compile(r"(?P<site>resid_pre|resid_post|attn_out|mlp_out)\.(?P<layer>\d+)"), None),
    (re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<site>resid_pre|resid_post|attn_out|mlp_out)"), None),
    (re.compile(r"(model\.|gpt_neox\.|transformer\.)?(layers|h)\.(?P<layer>\d+)"), "resid_post"),
    (re.compile(r"(model\.|gpt_neox\.|transformer\.)?(layers|h)\.(?P<layer>\d+)\.mlp"), "mlp_out"),
    (
        re.compile(r"(model\.|gpt_neox\.|transformer\.)?(layers|h)\.(?P<layer>\d+)\.(self_attn|attention|attn)"),
        "attn_out",
    ),
)


@dataclass(frozen=True)
class HookPoint:
    """A layer of a decoder and a site in it.

    ``resid_pre`` and ``resid_post`` are the residual stream before and after the block; ``attn_out`` and ``mlp_out``
    are what attention and MLP add to it (so in Gemma 2 and 3 they are taken after the sandwich norm, as
    TransformerLens does).
    """

    layer: int
    site: Site = "resid_post"

    @classmethod
    def parse(cls, text: str) -> HookPoint:
        """Read ``layers.5``, ``model.layers.5.mlp``, ``blocks.5.hook_resid_post``, ``resid_post.5`` and the like.

        Raises:
            ModelError: the text is none of the accepted spellings.
        """
        for pattern, site in _SPELLINGS:
            if match := pattern.fullmatch(text.strip()):
                return cls(int(match["layer"]), site or cast(Site, match["site"]))
        raise ModelError(
            f"hook point {text!r} is not understood; write for example 'layers.5' (residual stream after layer 5), "
            "'layers.5.mlp', 'layers.5.self_attn', 'blocks.5.hook_resid_post' or 'resid_post.5'"
        )

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"

    @property
    def transformer_lens_name(self) -> str:
        """The same place in TransformerLens spelling, for example ``blocks.5.hook_resid_post``."""
        return f"blocks.{self.layer}.hook_{self.site}"

    def check(self, n_layers: int, model_name: str) -> None:
        """Raise :class:`ModelError` if the model has no such layer."""
        if self.layer >= n_layers:
            raise ModelError(
                f"hook point {self} asks for layer {self.layer}, but {model_name} has {n_layers} layers, "
                f"numbered 0 to {n_layers - 1}"
            )

    def module(self, model: nn.Module) -> nn.Module:
        """The module whose input (``resid_pre``) or output (all other sites) is the activation at this point."""
        blocks = decoder_blocks(model)
        self.check(len(blocks), type(model).__name__)
        block = blocks[self.layer]
        if self.site in ("resid_pre", "resid_post"):
            return block
        children = dict(block.named_children())
        # Gemma 2 and 3 normalise what a sublayer adds; only there is this norm a sibling of `pre_feedforward_layernorm`.
        sandwich = "pre_feedforward_layernorm" in children
        if self.site == "attn_out":
            candidates = ("post_attention_layernorm",) if sandwich else ("self_attn", "attention", "attn")
        else:
            candidates = ("post_feedforward_layernorm",) if sandwich else ("mlp",)
        for name in candidates:
            if name in children:
                return children[name]
        raise ModelError(f"{type(block).__name__} has no {' or '.join(candidates)}; its parts are {sorted(children)}")
