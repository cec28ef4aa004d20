"""Recovery of planted features: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.evals.recovery.evaluate import SyntheticConfig, SyntheticResult, evaluate_synthetic
from scansion.evals.recovery.result import GroupRecovery
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


def _of(group: str, read: Callable[[GroupRecovery], float | None]) -> Callable[[SyntheticResult], float | None]:
    return lambda result: read(result.recovery.groups[group]) if group in result.recovery.groups else None


def _if_planted(config: SyntheticConfig) -> bool:
    return True  # whether a world has features of this kind is known only from its store


@evaluations.register(SyntheticConfig)
class Synthetic(Evaluation[SyntheticConfig, SyntheticResult]):
    """How much of a known dictionary the SAE has found, on activations made by `scansion synth`."""

    result = SyntheticResult
    needs_lm = False
    figures = (
        Figure("mmcs", "MMCS", "up", read=_of("all", lambda group: group.mmcs), headline=True),
        Figure("mmcs_chance", "MMCS, chance", read=lambda result: result.recovery.mmcs_chance),
        Figure("recovered", "recovered", "up", read=_of("all", lambda group: group.recovered), headline=True),
        Figure(
            "recovered_bound",
            "recovered, bound",
            "up",
            read=_of("bound", lambda group: group.recovered),
            only_if=_if_planted,
        ),
        Figure(
            "profile_overlap",
            "profile overlap, bound",
            "up",
            read=_of("bound", lambda group: group.firing.overlap),
            only_if=_if_planted,
        ),
        Figure(
            "profile_overlap_chance",
            "profile overlap, chance",
            read=_of("bound", lambda group: group.firing.overlap_chance),
            only_if=_if_planted,
        ),
    )

    def check(self, held_out: ActivationStore) -> None:
        """Raise unless the store holds planted activations."""
        if not held_out.identity.is_planted:
            raise ConfigError(
                f"{held_out.folder} holds activations of {held_out.identity.model}, whose true features are unknown; "
                "the synthetic evaluation needs a store made by `scansion synth` and an SAE trained on it"
            )

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[SyntheticResult]:
        """See :func:`evaluate_synthetic`."""
        return evaluate_synthetic(saes, held_out, self.config)
