"""All results of one SAE together: its status, its figures, and whether they may be compared with another SAE's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from scansion.evals import EvalResult, evaluations, figures_in
from scansion.evals.base import not_comparable
from scansion.evals.core.evaluate import CoreResult
from scansion.evals.position import PositionResult
from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.files import fingerprint


@dataclass(frozen=True)
class RunResults:
    """The results of one run, by the evaluation's name; ``core`` is always among them."""

    results: Mapping[str, EvalResult]

    @property
    def core(self) -> CoreResult:
        """Reconstruction, sparsity and loss recovered."""
        return cast(CoreResult, self.results["core"])

    @property
    def sparse_probing(self) -> SparseProbingResult | None:
        """Sparse probing, or None if it was not run."""
        return cast(SparseProbingResult | None, self.results.get("sparse_probing"))

    @property
    def position(self) -> PositionResult | None:
        """The position evaluation, or None if it was not run."""
        return cast(PositionResult | None, self.results.get("position"))

    @property
    def name(self) -> str:
        """The SAE's name."""
        return self.core.sae

    @property
    def reasons(self) -> list[str]:
        """Every reason to call the dictionary degenerate, each once; empty if there is none."""
        deciding = [result for name, result in self.results.items() if evaluations.called(name).decides]
        return list(dict.fromkeys(reason for result in deciding for reason in result.reasons))

    def figures(self) -> dict[str, Estimate]:
        """Every figure by name; empty for a degenerate dictionary, whose figures mean nothing."""
        if self.reasons:
            return {}
        return {name: estimate for result in self.results.values() for name, estimate in figures_in(result).items()}

    def means(self) -> dict[str, float | None]:
        """Every figure without its interval."""
        return {name: estimate.value for name, estimate in self.figures().items()}

    def not_applicable(self) -> dict[str, str]:
        """Name of each evaluation that has no figures here -> why; those that say the dictionary is degenerate aside."""
        return {
            name: f"{result.status}: {'; '.join(result.reasons)}"
            for name, result in self.results.items()
            if result.status != "ok" and not evaluations.called(name).decides
        }

    def evaluated_on(self) -> dict[str, str]:
        """Evaluation -> hash of the data and settings it was measured with."""
        return {name: fingerprint(result.data) for name, result in self.results.items()}

    def not_comparable_with(self, other: RunResults) -> list[str]:
        """What makes the figures of the two runs answer different questions; empty if they may be compared."""
        ours, theirs = ({**dict(run.core.sae_metadata), "evaluated_on": run.evaluated_on()} for run in (self, other))
        return not_comparable(ours, theirs)
