"""The two ways an LM is run: up to its hook points and no further, or through one with the activation replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scansion.corpus import Contexts
from scansion.errors import ModelError
from scansion.lm.editing import Edited
from scansion.lm.hook_points import HookPoint
from scansion.lm.load import LanguageModel

# The right places explain all that is added but for rounding, a wrong one leaves most of it.
_TOLERATED = 0.1

Replace = Callable[[Float[Tensor, "B L d_in"]], Float[Tensor, "B L d_in"]]


class _AllReached(Exception):
    """Raised inside the forward pass to leave it at the last of the hook points."""


def activations_at(lm: LanguageModel, hook_point: HookPoint, contexts: Contexts) -> Float[Tensor, "B L d_in"]:
    """The activations at ``hook_point``, in the LM's dtype on its device; nothing after that point is computed.

    Positions and padding are taken from ``contexts``, never inferred. Rows at padding hold no meaningful value.

    Args:
        lm: the model.
        hook_point: where to stop.
        contexts: one batch, all of which is run at once.

    Example:
        >>> contexts = scansion.Contexts.from_token_lists([[1, 5, 9]], 3, pad_id=2)
        >>> scansion.activations_at(lm, scansion.HookPoint.parse("layers.1"), contexts).shape
    """
    return activations_at_each(lm, [hook_point], contexts)[0]


@torch.no_grad()
def activations_at_each(
    lm: LanguageModel, hook_points: Sequence[HookPoint], contexts: Contexts
) -> list[Float[Tensor, "B L _"]]:
    """The activations at several hook points in one pass; each is what :func:`activations_at` returns for it.

    Nothing after the last of the points is computed.

    Args:
        lm: the model.
        hook_points: in any order, each once.
        contexts: one batch, all of which is run at once.
    """
    reached: dict[HookPoint, Tensor] = {}

    def keep(hook_point: HookPoint, activation: Tensor) -> Tensor:
        if hook_point not in reached:
            last = len(reached) == len(hook_points) - 1
            # The rest of the pass may work in place.
            reached[hook_point] = activation if last else activation.clone()
            if last:
                raise _AllReached
        return activation

    with ExitStack() as hooks:
        for hook_point in hook_points:
            hooks.enter_context(Edited(lm.model, hook_point, partial(keep, hook_point)))
        try:
            lm.model.base_model(**_inputs(lm, contexts))
        except _AllReached:
            for hook_point in hook_points:
                _require_width(reached[hook_point], hook_point, lm)
            return [reached[hook_point] for hook_point in hook_points]
    missed = ", ".join(str(hook_point) for hook_point in hook_points if hook_point not in reached)
    raise ModelError(f"the forward pass of {lm.facts.name} never reaches {missed}; choose another hook point")


def _require_width(activation: Tensor, hook_point: HookPoint, lm: LanguageModel) -> None:
    given, expected = activation.shape[-1], hook_point.width(lm.facts)
    if given != expected:
        raise ModelError(
            f"activations at {hook_point} of {lm.facts.name} are {given} wide; expected {expected}; "
            "correct the width that the site gives to hook_site(..., width=...)"
        )


@torch.no_grad()
def logits(
    lm: LanguageModel, contexts: Contexts, hook_point: HookPoint, replace: Replace | None = None
) -> Float[Tensor, "B L vocab"]:
    """Next-token logits, with the activation at ``hook_point`` replaced by ``replace(activation)`` if one is given."""
    if replace is None:
        return lm.model(**_inputs(lm, contexts)).logits
    with Edited(lm.model, hook_point, replace):
        return lm.model(**_inputs(lm, contexts)).logits


def _inputs(lm: LanguageModel, contexts: Contexts) -> dict[str, Any]:
    lm.facts.check_context_length(contexts.length)
    device = lm.device
    # Without padding no mask is passed, which lets attention take its fast causal path.
    mask = None if bool(contexts.valid.all()) else contexts.valid.to(device).long()
    largest = int(contexts.tokens.max())
    n_embedded = _n_embedded(lm)
    if largest >= n_embedded:
        raise ModelError(
            f"the text has the token {largest}, and {lm.facts.name} has embeddings for {n_embedded} tokens; "
            "use the tokenizer that belongs to the model"
        )
    inputs = {
        "input_ids": contexts.tokens.to(device).long(),
        "attention_mask": mask,
        "use_cache": False,
    }
    if _takes_positions(type(lm.model.base_model)):
        inputs["position_ids"] = contexts.positions.to(device).long()
    return inputs


def _n_embedded(lm: LanguageModel) -> int:
    """How many tokens the model has embeddings for."""
    return cast(nn.Embedding, lm.model.get_input_embeddings()).weight.shape[0]


@cache
def _takes_positions(kind: type[nn.Module]) -> bool:
    """Whether a model is told positions. Others (BLOOM, MPT, Mamba) read them off the order of the tokens and the mask."""
    return "position_ids" in signature(kind.forward).parameters


@torch.no_grad()
def check_parts(lm: LanguageModel, hook_point: HookPoint) -> None:
    """Raise unless what attention and MLP are said to add to the residual stream is what this model adds.

    Families differ in where they normalise. A few tokens are run, and ``resid_pre + attn_out + mlp_out`` is compared with
    ``resid_post``. Other sites are not checked.

    Raises:
        ModelError: they differ.
    """
    if hook_point.site not in ("attn_out", "mlp_out"):
        return
    tokens = torch.arange(8) % _n_embedded(lm)
    contexts = Contexts.from_token_lists([tokens.tolist()], 8, pad_id=0)
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    points = [HookPoint(hook_point.layer, site) for site in sites]
    before, attention, mlp, after = (acts.float() for acts in activations_at_each(lm, points, contexts))
    added = after - before
    rounding = torch.finfo(lm.model.dtype).eps * torch.maximum(before.norm(dim=-1), after.norm(dim=-1))
    left_over = ((added - attention - mlp).norm(dim=-1) - rounding).clamp_min(0) / added.norm(dim=-1).clamp_min(1e-12)
    missed = float(left_over.median())
    if not missed < _TOLERATED:
        raise ModelError(
            f"{hook_point} cannot be read from {lm.facts.name} ({lm.facts.family}): attention and MLP, as Scansion finds "
            f"them, leave {missed:.0%} of what layer {hook_point.layer} adds to the residual stream unexplained; use "
            f"resid_post.{hook_point.layer}, or a site of your own (scansion.lm.hook_site)"
        )
