"""Hook points: places in a decoder where activations are read or replaced, named as HF or TransformerLens names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from scansion.errors import ConfigError, ModelError
from scansion.lm.blocks import decoder_blocks
from scansion.lm.facts import ModelFacts
from scansion.lm.module_paths import as_path, layer_in, module_at, width_at
from scansion.lm.sites import Site, find_site, site_names

# Every accepted spelling, for layer 5. HF prefixes are those of Llama, Gemma, Qwen, GPT-NeoX and GPT-2.
_HF = r"(?:model\.|gpt_neox\.|transformer\.)?(?:layers|h)\.(?P<layer>[0-9]{1,9})"
_SPELLINGS: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"(?P<site>[a-z][a-z0-9_]*)\.(?P<layer>[0-9]{1,9})"), None),
    (re.compile(r"blocks\.(?P<layer>[0-9]{1,9})\.hook_(?P<site>[a-z][a-z0-9_]*)"), None),
    (re.compile(_HF), "resid_post"),
    (re.compile(_HF + r"\.mlp"), "mlp_out"),
    (re.compile(_HF + r"\.(?:self_attn|attention|attn)"), "attn_out"),
)


@dataclass(frozen=True)
class HookPoint:
    """A layer of a decoder and a site in it.

    ``resid_pre`` and ``resid_post`` are the residual stream before and after the block; ``attn_out`` and ``mlp_out``
    are what attention and MLP add to it (so in Gemma 2 and 3 they are taken after the sandwich norm, as
    TransformerLens does). :func:`scansion.lm.hook_site` adds sites. A site with a dot is the path of a module, seen from
    the model without its head: its output is read, and ``layer`` is the number in the path.

    Example:
        >>> scansion.HookPoint.parse("blocks.5.hook_resid_post") == scansion.HookPoint.parse("layers.5")
    """

    layer: int
    site: str = "resid_post"

    @classmethod
    def parse(cls, text: str) -> HookPoint:
        """Read ``layers.5``, ``model.layers.5.mlp``, ``blocks.5.hook_resid_post``, ``resid_post.5`` and the like; any other
        path of a module is taken as it is, for example ``model.layers.5.mlp.act_fn``.

        Raises:
            ModelError: the text is not one of the accepted spellings.
        """
        for pattern, site in _SPELLINGS:
            match = pattern.fullmatch(text.strip())
            name = site or (match["site"] if match else "")
            if match and find_site(name):
                return cls(int(match["layer"]), name)
        if path := as_path(text.strip()):
            return cls(layer_in(path), path)
        raise ModelError(
            f"hook point {text!r} is not understood; write for example 'layers.5' (residual stream after layer 5), "
            "'layers.5.mlp', 'layers.5.self_attn', 'blocks.5.hook_resid_post' or 'resid_post.5', or the path of a module like "
            "'model.layers.5.mlp.act_fn'; "
            f"the sites are {', '.join(site_names())}, and those of a file that --plugin FILE.py names"
        )

    def __str__(self) -> str:
        return self.site if self.is_path else f"{self.site}.{self.layer}"

    @property
    def is_path(self) -> bool:
        """Whether the site is the path of a module, whose output is read."""
        return "." in self.site

    @property
    def transformer_lens_name(self) -> str:
        """The same place in TransformerLens spelling, for example ``blocks.5.hook_resid_post``; of a module its path."""
        return self.site if self.is_path else f"blocks.{self.layer}.hook_{self.site}"

    @property
    def kind(self) -> Site:
        """The site that the name stands for.

        Raises:
            ConfigError: there is no site of this name.
        """
        if self.is_path:
            return Site(self.site, lambda model: module_at(model, self.site), "output", None)
        if site := find_site(self.site):
            return site
        raise ConfigError(f"there is no hook site {self.site!r}; there are {', '.join(site_names())}")

    def check(self, n_layers: int, model_name: str) -> None:
        """Raise :class:`ModelError` if the model has no such layer."""
        if self.layer >= n_layers:
            raise ModelError(
                f"hook point {self} asks for layer {self.layer}, but {model_name} has {n_layers} layers, "
                f"numbered 0 to {n_layers - 1}"
            )

    def width(self, facts: ModelFacts) -> int:
        """The width d_in of the activations at this point.

        Raises:
            ModelError: the site's width function fails on this model's configuration, or a module is not there or does not
                return activations.
        """
        if self.is_path:
            return width_at(facts, self.site)
        width = self.kind.width
        if width is None:
            return facts.d_model
        try:
            return int(width(facts.config))
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"the width function of the hook site {self.site} fails on the configuration of {facts.name}: {error}"
            ) from error

    def module(self, model: nn.Module) -> nn.Module:
        """The module whose input or output, see :attr:`kind`, is the activation at this point.

        Raises:
            ModelError: the model has no such layer, or its blocks have no such part.
        """
        if self.is_path:
            return module_at(model, self.site)
        blocks = decoder_blocks(model)
        self.check(len(blocks), type(model).__name__)
        try:
            return self.kind.module(blocks[self.layer])
        except AttributeError as error:  # of a site that was written for another family
            raise ModelError(f"the hook site {self.site} does not fit {type(model).__name__}: {error}") from error
