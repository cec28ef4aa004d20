"""An evaluation of your own: how evenly activity is spread over features. Give this file to any command as --plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from scansion.activations import ActivationStore
from scansion.evals import EvalResult, Evaluation, EvaluationConfig, Figure, LoadedSAE, evaluations
from scansion.evals.registry import LoadLM


class EvennessConfig(EvaluationConfig):
    evaluation: ClassVar[str] = "evenness"
    n_contexts: int = Field(default=64, ge=1, description="Held-out contexts to encode.")


class EvennessResult(EvalResult):
    eval: str = "evenness"
    evenness: float


@evaluations.register(EvennessConfig)
class Evenness(Evaluation[EvennessConfig, EvennessResult]):
    """How many features carry the activity: exp of its entropy over features, as a share of all features, in [0, 1]."""

    result = EvennessResult
    needs_lm = False
    figures = (Figure("evenness", "evenness of activity", "up", headline=True),)

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> list[EvennessResult]:
        return [self.result_for(sae, held_out, evenness=self._evenness(sae, held_out)) for sae in saes]

    @torch.no_grad()
    def _evenness(self, sae: LoadedSAE, held_out: ActivationStore) -> float:
        n = min(self.config.n_contexts, held_out.n_contexts)
        acts = sae.sae.encode(held_out.contexts(0, n).float())
        activity = (acts * held_out.valid[:, :n, None]).sum(dim=(0, 1))  # padding does not count
        share = activity / activity.sum().clamp_min(1e-12)
        return float(torch.special.entr(share).sum().exp() / len(share))
