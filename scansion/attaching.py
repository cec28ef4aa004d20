"""An SAE inside a running model: see which features fire, and change what they do, at chosen positions."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scansion.errors import ConfigError, ShapeError
from scansion.lm import HookPoint
from scansion.lm.editing import Edited
from scansion.sae import SAE

Mode = Literal["observe", "replace", "steer", "ablate"]


@dataclass(frozen=True)
class Step:
    """One forward pass: of a whole batch of texts, or under ``generate`` of the tokens that are new.

    Attributes:
        acts: feature activations before any change; 0 where the SAE was not applied.
        positions: of the tokens in their text; of padding, 0.
        applied: where the SAE was applied: not at padding, nor at positions it was not trained for.
    """

    acts: Float[Tensor, "B L d_sae"]
    positions: Int[Tensor, "B L"]
    applied: Bool[Tensor, "B L"]


@dataclass
class Seen:
    """What an attached SAE has seen, pass by pass.

    Attributes:
        steps: one for each forward pass.
    """

    steps: list[Step] = field(default_factory=list[Step])

    @property
    def acts(self) -> Float[Tensor, "B L d_sae"]:
        """Feature activations of all passes, joined along the tokens: of a text and what was generated after it."""
        return torch.cat([step.acts for step in self.steps], dim=1)

    @property
    def positions(self) -> Int[Tensor, "B L"]:
        """The positions of these tokens."""
        return torch.cat([step.positions for step in self.steps], dim=1)

    @property
    def applied(self) -> Bool[Tensor, "B L"]:
        """Where the SAE was applied to them."""
        return torch.cat([step.applied for step in self.steps], dim=1)


@contextmanager
def attach(
    model: nn.Module,
    sae: SAE,
    mode: Mode = "observe",
    *,
    hook_point: str | None = None,
    features: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    value: float | None = None,
    use_position_0: bool | None = None,
) -> Generator[Seen, None, None]:
    """Run an SAE at its hook point inside a Hugging Face model, for as long as the block lasts.

    Positions are those of tokens in their text: padding on either side does not count, and under ``generate`` with a
    cache they go on. Padding, position 0 (unless the SAE was trained on it) and positions past a mask's end pass
    unchanged. What the SAE does not reconstruct is kept, except in the mode ``replace``.

    Args:
        model: a causal model of transformers.
        sae: takes unscaled activations, as :func:`scansion.load_sae` returns it; moved to the model's device by the caller.
        mode: ``observe`` changes nothing; ``replace`` puts the reconstruction in place of the activation; ``steer`` sets
            features to ``value``; ``ablate`` sets them to 0.
        hook_point: where; default where the SAE was trained.
        features: which to steer or ablate.
        positions: change only tokens at these positions; default all.
        value: what features are set to by ``steer``, in units of their activation. A feature that the mask closes at a
            position stays closed there.
        use_position_0: whether the SAE is applied at position 0; default as it was trained.

    Yields:
        What the SAE sees, filled as the model runs.

    Raises:
        ConfigError: a mode without what it needs, an unknown feature or mode, or no hook point.
        ModelError: the model has no such layer or part.
        ShapeError: the activations there have another width than the SAE takes.

    Example:
        >>> with scansion.attach(model, sae, "steer", features=[12], value=30.0, positions=range(5, 20)):
        ...     model.generate(**tokenizer("It was a", return_tensors="pt"), max_new_tokens=20)
    """
    named = _checked(mode, sae, features, value)
    where = hook_point or (sae.provenance.hook_point if sae.provenance else None)
    if where is None:
        raise ConfigError("this SAE does not say where it belongs; give hook_point, for example 'layers.5'")
    if use_position_0 is None:
        use_position_0 = bool(sae.provenance and sae.provenance.use_position_0)
    run = _Run(sae, mode, named, value or 0.0, None if positions is None else frozenset(positions), use_position_0)
    backbone = cast(nn.Module, getattr(model, "base_model", model))
    handle = backbone.register_forward_pre_hook(run.see_inputs, with_kwargs=True)
    try:
        with Edited(model, HookPoint.parse(where), run.pass_through):
            yield run.seen
    finally:
        handle.remove()


def _checked(mode: str, sae: SAE, features: Sequence[int] | None, value: float | None) -> list[int]:
    if mode not in get_args(Mode):
        raise ConfigError(f"there is no mode {mode!r}; choose one of {', '.join(get_args(Mode))}")
    changes = mode in ("steer", "ablate")
    if changes != bool(features):
        raise ConfigError(f"{mode} needs features to change" if changes else f"{mode} changes no single features")
    if (mode == "steer") != (value is not None):
        raise ConfigError("steer needs the value to set features to" if mode == "steer" else f"{mode} takes no value")
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"the value {value} is not a finite number")
    if wrong := [index for index in features or () if index not in range(sae.d_sae)]:
        raise ConfigError(f"there is no feature {wrong[0]}; this SAE has {sae.d_sae}, numbered from 0")
    return list(features or ())


class _Run:
    """The two hooks: one on the backbone, which is told the positions, and one where the activation is."""

    def __init__(
        self, sae: SAE, mode: Mode, features: list[int], value: float, only: frozenset[int] | None, use_position_0: bool
    ) -> None:
        self.sae = sae
        self.mode = mode
        self.features = features
        self.value = value
        self.only = only
        self.use_position_0 = use_position_0
        self.seen = Seen()
        self._inputs: dict[str, Any] = {}

    def see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what the backbone is called with, whichever way it is given."""
        names = list(signature(module.forward).parameters)
        self._inputs = {**dict(zip(names, args, strict=False)), **kwargs}

    @torch.no_grad()
    def pass_through(self, x: Float[Tensor, "B L d_in"]) -> Float[Tensor, "B L d_in"]:
        """The activation, changed as asked; what was seen is kept."""
        if x.shape[-1] != self.sae.d_in:
            raise ShapeError(f"activations here are {x.shape[-1]} wide, and this SAE takes {self.sae.d_in}")
        positions, applied = self._places(x)
        weights = self.sae.W_dec
        tokens, places = x[applied].to(weights), positions[applied].to(weights.device)
        acts = self.sae.encode(tokens, places)
        kept = torch.zeros(*x.shape[:2], self.sae.d_sae, dtype=acts.dtype, device=acts.device)
        kept[applied.to(acts.device)] = acts
        self.seen.steps.append(Step(kept, positions, applied))
        if self.mode == "observe":
            return x
        new = self.sae.decode(acts, places, tokens)
        if self.mode != "replace":
            # What the SAE leaves over is added back, computed from what it saw: the change is that of the features alone.
            new = tokens + self.sae.decode(self._edited(acts, places), places, tokens) - new
        changed = self._changes(places)
        result = x.clone()
        result[applied] = torch.where(changed[:, None], new, tokens).to(x)
        return result

    def _edited(self, acts: Float[Tensor, "T d_sae"], places: Int[Tensor, "T"]) -> Float[Tensor, "T d_sae"]:
        edited = acts.clone()
        if self.mode == "ablate":
            edited[:, self.features] = 0.0
        else:
            is_open = self.sae.mask.can_fire(places)[:, self.features]
            edited[:, self.features] = torch.where(is_open, self.value, edited[:, self.features])
        return edited

    def _changes(self, places: Int[Tensor, "T"]) -> Bool[Tensor, "T"]:
        if self.only is None:
            return torch.ones_like(places, dtype=torch.bool)
        return torch.isin(places, torch.tensor(sorted(self.only), dtype=places.dtype, device=places.device))

    def _places(self, x: Tensor) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Each token's position in its text, and where the SAE applies."""
        batch, length = x.shape[:2]
        mask = self._inputs.get("attention_mask")
        cache = self._inputs.get("past_key_values")
        before = int(cache.get_seq_length()) if cache is not None else 0
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask.to(x.device)[:, -length:] > 0
            positions = (mask.to(x.device).cumsum(dim=1) - 1).clamp_min(0)[:, -length:]
        else:
            valid = torch.ones(batch, length, dtype=torch.bool, device=x.device)
            given = self._inputs.get("position_ids")
            positions = (
                given.to(x.device).expand(batch, length)
                if isinstance(given, Tensor) and given.ndim == 2
                else torch.arange(before, before + length, device=x.device).expand(batch, length)
            )
        applied = valid & ((positions > 0) | self.use_position_0)
        if not self.sae.treats_positions_alike:
            applied = applied & (positions < self.sae.n_positions)
        return positions.where(valid, 0), applied
