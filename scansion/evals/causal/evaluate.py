"""Ablate and steer position-bound features where they fire and elsewhere, and see what the model's output makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.attaching import attach
from scansion.corpus import Contexts
from scansion.device import dtype_name
from scansion.evals.base import LoadedSAE, data_from, reasons_before_running
from scansion.evals.causal.features import Target, choose_targets, read_profile
from scansion.evals.causal.result import PositionCausalResult, Tally
from scansion.evals.core.loss import stored_contexts
from scansion.evals.reading.groups import deal_documents, document_of_each
from scansion.evals.reading.training import CountsPositions, as_trained, fill
from scansion.lm import HookPoint, LanguageModel, logits
from scansion.progress import Advance, progress
from scansion.sae import SAE

_MODES: tuple[Literal["ablate", "steer"], ...] = ("ablate", "steer")


class PositionCausalConfig(CountsPositions):
    """Which features are changed, where, and over how much text."""

    evaluation: ClassVar[str] = "position_causal"

    n_features: int = Field(
        default=16, ge=1, description="Position-bound features to change, each alone, and as many controls."
    )
    n_contexts: int = Field(
        default=16,
        ge=2,
        description="Held-out contexts to change them in, of different documents while there are enough.",
    )
    min_firings: int = Field(
        default=50, ge=2, description="Firings that a feature needs in the text that profiles come from."
    )
    home_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="A feature's own positions are the fewest that hold this share of its firing profile, half of all at most.",
    )
    strength: float = Field(
        default=2.0, gt=0, description="Steering sets a feature to this multiple of its mean activation where it fires."
    )
    batch_contexts: int = Field(default=16, ge=1, description="Contexts per batch of the SAE.")
    lm_batch_size: int = Field(default=8, ge=1, description="Contexts per batch of the LM.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of the halves of documents, the other positions and intervals."
    )


def evaluate_position_causal(
    subjects: Sequence[LoadedSAE], store: ActivationStore, lm: LanguageModel, config: PositionCausalConfig
) -> list[PositionCausalResult]:
    """Change features at their own positions and at as many others, in the running model, by :func:`scansion.attach`.

    One half of the documents gives the firing profiles, with the mask lifted: which features are most tied to positions,
    and where. In the other half, each of these features is set to zero, and set to a high value, at its own positions and
    then at others. The effect is the KL divergence of the model's next-token distribution from the untouched one. Controls
    are features that fire as often and are little tied to positions, changed at the same positions.

    Args:
        subjects: SAEs of the store's model and hook point.
        store: held-out activations, of contexts that hold one document each.
        lm: the model the store was made with.
        config: settings.

    Raises:
        EvalError: contexts mix documents, or there are too few documents.
        ModelError, ShapeError: an SAE does not fit the model.
    """
    config = as_trained(config, subjects)
    text = _Text.of(store, config)
    return [_evaluate(subject, text, lm, config) for subject in subjects]


def check_position_causal(store: ActivationStore, config: PositionCausalConfig) -> None:
    """Raise :class:`EvalError` unless features can be changed on the text of ``store``; quick, and so done first."""
    # Whether position 0 counts may depend on an SAE that is yet to be trained; it makes no difference here.
    _Text.of(store, fill(config, {"use_position_0": False}))


@dataclass(frozen=True, eq=False)
class _Text:
    """The two halves: tokens that profiles are read from, and contexts that features are changed in."""

    store: ActivationStore
    positions: Int[Tensor, "P"]
    profiled: Bool[Tensor, "P C"]
    counted: Bool[Tensor, "P C"]
    changed: list[int]
    n_documents: int

    @classmethod
    def of(cls, store: ActivationStore, config: PositionCausalConfig) -> _Text:
        positions, counted = config.counted_tokens(store)
        documents = document_of_each(store, store.n_contexts)
        odd = deal_documents(documents, 4, config.seed) % 2 == 1
        lengths = store.valid.sum(dim=0).numpy()
        # The longest first, for late positions; one of each document, then the rest.
        longest = sorted(np.flatnonzero(odd), key=lambda context: (-lengths[context], context))
        first: dict[int, int] = {}
        for context in longest:
            first.setdefault(int(documents[context]), int(context))
        taken = set(first.values())
        rest = [int(context) for context in longest if int(context) not in taken]
        changed = sorted([*first.values(), *rest][: config.n_contexts])
        profiled = counted & torch.from_numpy(~odd)
        return cls(store, positions, profiled, counted, changed, len({int(documents[one]) for one in changed}))

    def contexts(self, part: Sequence[int]) -> Contexts:
        """Some of the contexts to change, as the LM reads them."""
        return stored_contexts(self.store, torch.tensor(part))


def _evaluate(subject: LoadedSAE, text: _Text, lm: LanguageModel, config: PositionCausalConfig) -> PositionCausalResult:
    reasons, why = reasons_before_running(subject), ""
    measured: dict[str, Any] = {}
    if not reasons:
        # With the mask lifted: what it closes could be changed nowhere but at the positions it was given.
        sae = subject.sae.lifted()
        with progress(f"profiles of {subject.name}", text.store.n_contexts, "contexts") as advance:
            profile = read_profile(sae, text.store, text.positions, text.profiled, config.batch_contexts, advance)
        targets, controls = choose_targets(
            profile, text.positions.tolist(), config.n_features, config.min_firings, config.home_share,
            np.random.default_rng(config.seed),
        )  # fmt: skip
        if targets:
            measured = _change_all(subject.name, sae, text, lm, targets, controls, config)
        else:
            why = f"fewer than 2 features fired {config.min_firings} times in the text that profiles come from"
    return PositionCausalResult.of(
        subject,
        {**data_from(text.store, config), "lm_dtype": dtype_name(lm.model.dtype)},
        config.seed,
        reasons,
        inapplicable=[why] if why else [],
        **measured,
    )


def _change_all(
    name: str,
    sae: SAE,
    text: _Text,
    lm: LanguageModel,
    targets: Sequence[Target],
    controls: Sequence[Target],
    config: PositionCausalConfig,
) -> dict[str, Any]:
    groups = (targets, controls)
    values = [[config.strength * target.active for target in group] for group in groups]
    tallies = [Tally(len(group), len(text.changed)) for group in groups]
    before = 0.0
    passes = len(text.changed) * (1 + 2 * len(_MODES) * sum(map(len, groups)))
    with progress(f"change features of {name}", passes, "contexts") as advance:
        for start in range(0, len(text.changed), config.lm_batch_size):
            part = text.changed[start : start + config.lm_batch_size]
            run = _Changes(sae, text, lm, part, config.counts_position_0, advance)
            for tally, group, steered in zip(tallies, groups, values, strict=True):
                for index, (target, value) in enumerate(zip(group, steered, strict=True)):
                    for m, mode in enumerate(_MODES):
                        for p, places in enumerate((target.home, target.other)):
                            seen = run.change(target.feature, mode, places, value)
                            rows = slice(start, start + len(part))
                            tally.at[m, p, index, rows], tally.n_at[m, p, index, rows] = seen.at
                            tally.after[m, p, index, rows], tally.n_after[m, p, index, rows] = seen.after
                            before = max(before, seen.before)
    bound, control = (
        tally.effect(group, steered, config.seed) for tally, group, steered in zip(tallies, groups, values, strict=True)
    )
    return {
        "bound": bound,
        "control": control,
        "n_contexts": len(text.changed),
        "n_documents": text.n_documents,
        "before": before,
    }


@dataclass(frozen=True)
class _Seen:
    """KL of one change, summed over tokens of each context, with the number of these; before it, the largest."""

    at: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]
    before: float


class _Changes:
    """Some contexts in the running model, whose output without any change is kept."""

    def __init__(
        self, sae: SAE, text: _Text, lm: LanguageModel, part: Sequence[int], use_position_0: bool, advance: Advance
    ) -> None:
        self._sae, self._lm, self._advance = sae, lm, advance
        self._contexts = text.contexts(part)
        self._hook_point = HookPoint.parse(text.store.identity.hook_point)
        self._use_position_0 = use_position_0
        self._counted = torch.zeros_like(self._contexts.valid)
        self._counted[:, text.positions] = text.counted[:, torch.tensor(part)].T
        self._clean = self._output()

    def _output(self) -> Float[Tensor, "B L vocab"]:
        output = logits(self._lm, self._contexts, self._hook_point).float().log_softmax(dim=-1)
        self._advance(len(self._contexts))
        return output

    @torch.no_grad()
    def change(self, feature: int, mode: Literal["ablate", "steer"], places: Sequence[int], value: float) -> _Seen:
        """Run the model with one feature changed at some positions."""
        with attach(
            self._lm.model, self._sae, mode, hook_point=str(self._hook_point), features=[feature], positions=places,
            value=value if mode == "steer" else None, use_position_0=self._use_position_0,
        ):  # fmt: skip
            changed = self._output()
        kl = (self._clean.exp() * (self._clean - changed)).sum(dim=-1).clamp_min(0).cpu().double().numpy()
        valid, length = self._contexts.valid.numpy(), self._contexts.length
        at = np.isin(np.arange(length), places) & self._counted.numpy()
        later = np.arange(length) > min(places)
        after = valid & later & ~np.isin(np.arange(length), places)
        before = kl[valid & (np.arange(length) < min(places))]
        return _Seen(
            ((kl * at).sum(axis=1), at.sum(axis=1)),
            ((kl * after).sum(axis=1), after.sum(axis=1)),
            float(before.max(initial=0.0)),
        )
