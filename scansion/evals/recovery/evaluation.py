"""Recovery of planted features: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

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


def _figure(
    name: str,
    label: str,
    better: Literal["up", "down"] | None,
    group: str,
    read: Callable[[GroupRecovery], float | None],
    headline: bool = False,
) -> Figure:
    """A figure of the bound or of the unbound true features, which a world may lack."""
    return Figure(name, label, better, read=_of(group, read), headline=headline, only_if=_if_planted)


@evaluations.register(SyntheticConfig)
class Synthetic(Evaluation[SyntheticConfig, SyntheticResult]):
    """How much of a known dictionary the SAE has found, on activations made by `scansion synth`."""

    result = SyntheticResult
    needs_lm = False
    figures = (
        Figure("mmcs", "MMCS", "up", read=_of("all", lambda group: group.mmcs), headline=True),
        Figure("mmcs_chance", "MMCS, chance", read=lambda result: result.recovery.mmcs_chance, headline=True),
        Figure("recovered", "recovered", "up", read=_of("all", lambda group: group.recovered), headline=True),
        _figure("recovered_bound", "recovered, bound", "up", "bound", lambda group: group.recovered, True),
        _figure("recovered_unbound", "recovered, unbound", "up", "unbound", lambda group: group.recovered, True),
        _figure("profile_overlap", "profile overlap, bound", "up", "bound", lambda group: group.firing.overlap, True),
        _figure(
            "profile_overlap_chance",
            "profile overlap, chance",
            None,
            "bound",
            lambda group: group.firing.overlap_chance,
            True,
        ),
        _figure("mask_overlap", "mask overlap, bound", "up", "bound", lambda group: group.mask.overlap),
        _figure("mask_overlap_chance", "mask overlap, chance", None, "bound", lambda group: group.mask.overlap_chance),
        _figure("mask_iou", "mask IoU, bound", "up", "bound", lambda group: group.mask.iou),
        _figure("mask_iou_chance", "mask IoU, chance", None, "bound", lambda group: group.mask.iou_chance),
        Figure(
            "spurious_firing",
            "spurious, unbound",
            "down",
            read=lambda result: result.recovery.spurious_firing,
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
