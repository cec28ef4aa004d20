"""Targeted probe perturbation and spurious correlation removal: their figures, and how they are run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.ablation.saebench import scr_json, tpp_json
from scansion.evals.ablation.scr import ScrConfig, ScrResult, evaluate_scr
from scansion.evals.ablation.tpp import TppConfig, TppResult, evaluate_tpp
from scansion.evals.base import LoadedSAE
from scansion.evals.probing.sets import ASSET
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.lm import HookPoint


def _ns(config: TppConfig | ScrConfig) -> Iterable[int]:
    return config.n_values


@evaluations.register(TppConfig)
class Tpp(Evaluation[TppConfig, TppResult]):
    """Targeted probe perturbation: whether ablating the features of one class hurts the probe of that class alone."""

    result = TppResult
    reads_store = False
    figures = (
        Figure(
            "tpp_{n}",
            "TPP, {n} ablated",
            "up",
            read=lambda result: {n: one.total for n, one in result.by_n.items()},
            headline=(20,),
            numbers=_ns,
        ),
    )

    @property
    def tokens_of_own_text(self) -> int:
        """Of a text of one class."""
        return self.config.context_length or 0

    def assets(self) -> list[str]:
        """The labelled texts."""
        return [ASSET]

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[TppResult]:
        """See :func:`evaluate_tpp`."""
        return evaluate_tpp(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: TppResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``tpp``."""
        return tpp_json(result, sae)


@evaluations.register(ScrConfig)
class Scr(Evaluation[ScrConfig, ScrResult]):
    """Spurious correlation removal: whether ablating a few features rids a probe of a bias in its training texts."""

    result = ScrResult
    reads_store = False
    figures = (
        Figure("scr_{n}", "SCR, {n} ablated", "up", read=lambda result: result.by_n, headline=(20,), numbers=_ns),
    )

    @property
    def tokens_of_own_text(self) -> int:
        """Of a text with two labels."""
        return self.config.context_length or 0

    def assets(self) -> list[str]:
        """The labelled texts."""
        return [ASSET]

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[ScrResult]:
        """See :func:`evaluate_scr`."""
        return evaluate_scr(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: ScrResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``scr``."""
        return scr_json(result, sae)
