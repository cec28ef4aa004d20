"""SAEs of ours in SAELens, for what it has no architecture: a positional mask, and Switch. Needs the extra ``[saelens]``.

Importing this module registers the architecture ``scansion`` there, so that ``sae_lens.SAE.load_from_disk`` opens such folders.
SAELens gives an SAE no positions; :func:`carry_positions` takes them from the model it runs in.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens.registry import register_sae_class
from sae_lens.saes.sae import SAE as LensSAE
from sae_lens.saes.sae import SAEConfig as LensConfig
from torch import Tensor, nn

from scansion.errors import ConfigError, ShapeError
from scansion.interop.saelens import REGISTERED_AS
from scansion.sae import build_sae, parse_sae_config

_POSITIONS: ContextVar[Tensor | None] = ContextVar("scansion_positions", default=None)


@dataclass
class MaskedSAEConfig(LensConfig):
    """What SAELens keeps of an SAE of ours: ``scansion`` holds our settings and the number of positions."""

    scansion: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def architecture(cls) -> str:
        """The name it is registered under."""
        return REGISTERED_AS


class MaskedSAE(LensSAE[MaskedSAEConfig]):
    """An SAE of ours that takes each token's position from :func:`carry_positions` or :func:`at_positions`."""

    b_enc: nn.Parameter

    def initialize_weights(self) -> None:
        """Build ours, whose tensors SAELens then replaces by those of the file."""
        ours = self.cfg.scansion
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(0)
            self.ours = build_sae(
                parse_sae_config(dict(ours["sae"])), self.cfg.d_in, ours["n_positions"], generator
            ).eval()

    def __getattr__(self, name: str) -> Any:
        """The weights are those of ours."""
        if name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            return getattr(self.ours, name)
        return super().__getattr__(name)

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations at the positions carried.

        Raises:
            ShapeError: no positions are known, or they are not of these tokens.
            ConfigError: a hook changes the pre-activations, which would not change what comes after them.
        """
        x = self.hook_sae_input(x.to(self.dtype))
        masked = self.ours.masked_acts(x, self._positions(x))
        if self.hook_sae_acts_pre(masked.pre_acts) is not masked.pre_acts:
            raise ConfigError("this SAE's pre-activations can be read and not changed; change hook_sae_acts_post")
        return self.hook_sae_acts_post(masked.acts)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction from feature activations."""
        positions = self._positions(feature_acts) if self.ours.b_dec.ndim > 1 else None
        return self.hook_sae_recons(self.ours.decode(feature_acts, positions))

    def _positions(self, x: Tensor) -> Tensor | None:
        positions = _POSITIONS.get()
        if self.ours.treats_positions_alike:
            return None
        if positions is None or positions.shape != x.shape[:-1]:
            of = "no positions" if positions is None else f"positions of shape {list(positions.shape)}"
            raise ShapeError(
                f"this SAE has a positional mask, and there are {of} for activations of shape {list(x.shape)}; run the model "
                "within `with carry_positions(model):`, or give positions with `with at_positions(positions):`"
            )
        return positions.to(x.device)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Tensors under our names."""
        for name in list(state_dict):
            state_dict[name.removeprefix("ours.")] = state_dict.pop(name).contiguous()

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Tensors under SAELens' names; it reads all as floats, also those that say where a mask is open."""
        types = {
            name: tensor.dtype for name, tensor in self.ours.state_dict().items() if not tensor.is_floating_point()
        }
        for name in list(state_dict):
            tensor = state_dict.pop(name)
            state_dict[f"ours.{name}"] = tensor.to(types.get(name, tensor.dtype))


register_sae_class(REGISTERED_AS, MaskedSAE, MaskedSAEConfig)


@contextmanager
def at_positions(positions: Tensor | None) -> Generator[None]:
    """Within the block, activations given to a masked SAE are of tokens at these positions.

    Args:
        positions: of the shape of the activations without their last axis.

    Example:
        >>> with at_positions(torch.arange(128).expand(len(acts), 128)):
        ...     sae.encode(acts)
    """
    token = _POSITIONS.set(positions)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


@contextmanager
def carry_positions(model: nn.Module) -> Generator[None]:
    """Within the block, masked SAEs in a ``HookedSAETransformer`` are given each token's position in its text.

    Padding on either side does not count, and with a cache positions go on. Positions past the end of a mask use its last
    position, unless the SAE's settings say otherwise (``beyond``).

    Args:
        model: a ``HookedTransformer`` or one derived from it.

    Example:
        >>> model.add_sae(SAE.load_from_disk("exported"), exclude_special_tokens=True)
        >>> with carry_positions(model):
        ...     model.generate("It was a", max_new_tokens=20)
    """

    def carry(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch, length = args[0].shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is None:
            cache = kwargs.get("past_kv_cache_entry")
            before = 0 if cache is None else cache.past_keys.shape[1]
            positions = torch.arange(before, before + length).expand(batch, length)
        else:  # of the cached tokens too
            positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -length:]
        _POSITIONS.set(positions)

    def forget(*_: Any) -> None:
        _POSITIONS.set(None)

    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(f"{type(model).__name__} is not a HookedTransformer: it has no blocks")
    hooks = [block.register_forward_pre_hook(carry, with_kwargs=True) for block in blocks]
    hooks.append(model.register_forward_hook(forget, always_call=True))
    try:
        with at_positions(None):
            yield
    finally:
        for hook in hooks:
            hook.remove()
