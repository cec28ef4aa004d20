"""The core evaluation: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.evals.core.saebench import core_json
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


def _by_position(name: str) -> Callable[[CoreResult], tuple[Sequence[int], Sequence[float | None]]]:
    return lambda result: (result.positions, result.by_position[name])


def _with_lm(config: CoreConfig) -> bool:
    return config.loss_contexts > 0


@evaluations.register(CoreConfig)
class Core(Evaluation[CoreConfig, CoreResult]):
    """Reconstruction, sparsity and loss recovered on held-out text. Always run: it names degenerate dictionaries."""

    result = CoreResult
    needs_lm = False  # only for the loss, and not on planted activations
    decides = True
    figures = (
        Figure("fve", "FVE", "up", headline=True, by_position=_by_position("fve")),
        Figure("normalised_mse", "normalised MSE", "down"),
        Figure("cosine", "cosine", "up"),
        Figure("l0", "L0", headline=True, digits=1, by_position=_by_position("l0")),
        Figure("l1", "L1"),
        Figure("dead_share", "dead", "down", headline=True),
        Figure("dense_share", "dense", "down"),
        Figure("duplicate_share", "duplicates", "down"),
        Figure("ce_loss_recovered", "CE recovered", "up", headline=True, only_if=_with_lm),
        Figure("ce_loss", "CE loss, nats", "down", only_if=_with_lm),
        Figure("kl", "KL, nats", "down", only_if=_with_lm),
    )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[CoreResult]:
        """See :func:`evaluate_core`."""
        return evaluate_core(saes, held_out, load_lm, self.config)

    def saebench(self, result: CoreResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``core``."""
        return core_json(result, sae)
