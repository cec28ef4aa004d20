"""How SAEs were trained: settings that follow it unless they are set, and what a store, a model and a text must share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from scansion.activations import ActivationStore, TokenExclusion
from scansion.corpus import tokenizer_fingerprint
from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE
from scansion.evals.registry import EvaluationConfig
from scansion.lm import HookPoint, LanguageModel, ModelId
from scansion.progress import say

Config = TypeVar("Config", bound=EvaluationConfig)
Value = TypeVar("Value")


class CountsPositions(TokenExclusion, EvaluationConfig):
    """Base of the settings of evaluations that read a store: whether its first position counts, and which tokens do not."""

    use_position_0: bool | None = Field(
        default=None,
        description="Count the first position (BOS, the attention sink) too; default as the SAE was trained.",
    )

    @property
    def counts_position_0(self) -> bool:
        """Whether position 0 counts. Raises :class:`EvalError` before :func:`as_trained` has filled it in."""
        return _filled("use_position_0", self.use_position_0)

    def counted_tokens(self, store: ActivationStore) -> tuple[Int[Tensor, "P"], Bool[Tensor, "P C"]]:
        """The positions that have tokens that count, and which tokens count there.

        Raises:
            StoreError: no token counts.
            EvalError: as :attr:`counts_position_0`.
        """
        excluded = self.excluded(store)
        positions = store.used_positions(self.counts_position_0, excluded)
        return positions, (store.valid if excluded is None else store.valid & ~excluded)[positions]


class ReadsTexts(EvaluationConfig):
    """Base of the settings of evaluations that read texts of their own."""

    context_length: int | None = Field(
        default=None, ge=2, description="Tokens of a text that are read, BOS included; default as the SAE was trained."
    )

    @property
    def text_length(self) -> int:
        """Tokens of a text that are read. Raises :class:`EvalError` before :func:`as_trained` has filled it in."""
        return _filled("context_length", self.context_length)


def as_trained(config: Config, saes: Sequence[LoadedSAE]) -> Config:
    """The settings with what follows training filled in; a setting that differs from training is said in one line.

    Every evaluation calls this before it reads anything.

    Raises:
        EvalError: see :func:`fill_from_training`.
    """
    for name in _follow_training(config):
        value = getattr(config, name)
        differing = {sae.name: its for sae in saes if (its := getattr(sae.metadata, name)) != value}
        if value is not None and differing:
            trained = ", ".join(f"{sae}: {its}" for sae, its in differing.items())
            say(f"{config.evaluation}: {name} is set to {value}, which differs from training ({trained})")
    return fill_from_training(config, saes)


def fill_from_training(config: Config, saes: Sequence[LoadedSAE]) -> Config:
    """The settings with what follows training filled in from the metadata of the SAEs.

    Raises:
        EvalError: the SAEs were trained differently, so that no one value follows training.
    """
    found: dict[str, Any] = {}
    for name in _follow_training(config):
        trained = {sae.name: getattr(sae.metadata, name) for sae in saes}
        if getattr(config, name) is None and len(set(trained.values())) > 1:
            each = ", ".join(f"{sae}: {value}" for sae, value in trained.items())
            raise EvalError(
                f"{config.evaluation}: the SAEs were trained with different {name} ({each}); "
                f"evaluate them separately, or set {name} in the settings of {config.evaluation}"
            )
        if trained:
            found[name] = next(iter(trained.values()))
    return fill(config, found)


def fill(config: Config, trained: dict[str, Any]) -> Config:
    """The settings with these values, by name, where they follow training and are not set."""
    unset = {name: value for name, value in trained.items() if getattr(config, name, value) is None}
    return config.model_copy(update=unset) if unset else config


def _follow_training(config: EvaluationConfig) -> list[str]:
    bases = {"use_position_0": CountsPositions, "context_length": ReadsTexts}
    return [name for name, base in bases.items() if isinstance(config, base)]


def _filled(name: str, value: Value | None) -> Value:
    if value is None:
        raise EvalError(f"{name} follows the SAE's training: fill it in with as_trained(config, saes), or set it")
    return value


def require_same_source(subjects: Sequence[LoadedSAE], store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless every SAE was trained on the store's model, revision and hook point."""
    identity = store.identity
    for subject in subjects:
        _require_trained_on(subject, identity.model_id, identity.hook_point, "the store holds")


def require_same_model(lm: LanguageModel, store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless the store was made with ``lm``."""
    if not lm.facts.id.same_as(store.identity.model_id):
        raise EvalError(
            f"{lm.facts.name} is now at {lm.facts.revision}, but the store was made with "
            f"{store.identity.model_revision}; harvest again, or bring that model back"
        )


def require_same_tokenizer(lm: LanguageModel, store: ActivationStore) -> None:
    """Raise :class:`EvalError` unless the store's text was tokenised as ``lm`` tokenises now: tokens would mean other words."""
    then = store.identity.corpus.get("tokenizer")
    if then is not None and then != (now := tokenizer_fingerprint(lm.tokenizer)):
        raise EvalError(
            f"the tokenizer of {lm.facts.name} has changed since {store.place} was harvested ({then} then, {now} now); "
            "harvest again, or bring that tokenizer back"
        )


def require_sae_matches_lm(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, context_length: int
) -> None:
    """Raise unless the LM reads contexts of this length and every SAE was trained on it, at this hook point.

    Raises:
        ModelError: the model has no such layer, or cannot read contexts of this length.
        EvalError: an SAE was trained on another model or hook point.
        ShapeError: an SAE does not fit the model's width or the context length.
    """
    lm.facts.check_context_length(context_length)
    hook_point.check(lm.facts.n_layers, lm.facts.name)
    for subject in subjects:
        _require_trained_on(subject, lm.facts.id, str(hook_point), "the texts are read by")
        weights = subject.sae.W_enc
        # Encoding one token at the last position runs every check of width and mask that the texts will meet.
        last = torch.tensor([context_length - 1], device=weights.device)
        with torch.no_grad():
            subject.sae.encode(weights.new_zeros(1, subject.sae.window * hook_point.width(lm.facts)), last)


def _require_trained_on(subject: LoadedSAE, model: ModelId, hook_point: str, what: str) -> None:
    trained = subject.metadata
    if not trained.model_id.same_as(model) or trained.hook_point != hook_point:
        same = trained.model_id.same_as(model)  # then its hash would only be in the way
        there, here = ("", "") if same else (f"{trained.model_id} ", f"{model} ")
        raise EvalError(
            f"{subject.name} was trained on {there}{trained.hook_point}, but {what} {here}{hook_point}; "
            "evaluate an SAE on its own model and hook point"
        )
