"""All results of one SAE together: its status, its headline figures, and whether it may be compared with another's."""

from __future__ import annotations

from dataclasses import dataclass

from scansion.evals.base import EvalResult, not_comparable
from scansion.evals.core.evaluate import CoreResult
from scansion.evals.position import PositionResult
from scansion.evals.probing.result import SparseProbingResult


@dataclass(frozen=True)
class RunResults:
    """The results of one run; probing and position may have been left out."""

    core: CoreResult
    sparse_probing: SparseProbingResult | None
    position: PositionResult | None = None

    @property
    def name(self) -> str:
        """The SAE's name."""
        return self.core.sae

    @property
    def reasons(self) -> list[str]:
        """Every reason to call the dictionary degenerate, each once; empty if there is none."""
        return list(dict.fromkeys(reason for result in self._results for reason in result.reasons))

    def means(self) -> dict[str, float | None]:
        """Every headline figure by name; empty for a degenerate dictionary, whose figures mean nothing."""
        if self.reasons:
            return {}
        figures: dict[str, float | None] = {}
        for result in self._results:
            figures |= result.headline()
        return figures

    def not_comparable_with(self, other: RunResults) -> list[str]:
        """What makes the figures of the two runs answer different questions; empty if they may be compared."""
        return not_comparable(self._answered(), other._answered())

    @property
    def _results(self) -> list[EvalResult]:
        return [result for result in (self.core, self.sparse_probing, self.position) if result]

    def _answered(self) -> dict[str, object]:
        """What the figures are of, as :func:`~scansion.evals.base.not_comparable` takes it."""
        return {**dict(self.core.sae_metadata), "evaluated_on": {one.eval: one.data for one in self._results}}
