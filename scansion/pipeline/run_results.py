"""All results of one SAE together: its status, its figures, and whether they may be compared with another SAE's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from scansion.evals import EvalResult, evaluations, figures_in
from scansion.evals.core.evaluate import CoreResult
from scansion.evals.position import PositionResult
from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.statistics import Estimate, TextGroups
from scansion.files import fingerprint
from scansion.lm import ModelId
from scansion.training.config import is_short

# Not known of an SAE of another library, which the tables say.
_MAY_BE_UNKNOWN = ("contexts", "tokens")
# Runs that differ in one of these answer different questions.
MUST_AGREE = ("model", "model_revision", "hook_point", "contexts", "context_length", "use_position_0", "tokens")


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

    @property
    def is_short(self) -> bool:
        """Whether it was trained for too few steps for its figures to be final."""
        return is_short(self.core.sae_metadata.steps)

    def figures(self) -> dict[str, Estimate]:
        """Every figure by name; empty for a degenerate dictionary, whose figures mean nothing."""
        if self.reasons:
            return {}
        return {name: estimate for result in self.results.values() for name, estimate in figures_in(result).items()}

    def means(self) -> dict[str, float | None]:
        """Every figure without its interval."""
        return {name: estimate.value for name, estimate in self.figures().items()}

    def by_text(self) -> dict[str, TextGroups]:
        """Figures by groups of the text they were measured on; empty for a degenerate dictionary."""
        if self.reasons:
            return {}
        return {name: groups for result in self.results.values() for name, groups in result.by_text.items()}

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


def not_comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What makes the figures of two runs answer different questions; empty if the runs may be compared.

    Args:
        ours, theirs: of each run, the values of :data:`MUST_AGREE`, and under ``evaluated_on`` the data that each
            evaluation was measured on, by the evaluation's name. An evaluation that only one of the runs has does not
            count: its figures are missing from the other, not different.
    """
    here, there = (ModelId(str(one.get("model")), str(one.get("model_revision"))) for one in (ours, theirs))
    same_model = here.same_as(there)
    problems = [
        f"{name} is {ours.get(name)!r}, not {theirs.get(name)!r}"
        for name in MUST_AGREE
        if ours.get(name) != theirs.get(name)
        and not (same_model and name in ("model", "model_revision"))
        and not (name in _MAY_BE_UNKNOWN and not (ours.get(name) and theirs.get(name)))
    ]
    measured, other = ours.get("evaluated_on", {}), theirs.get("evaluated_on", {})
    different = [name for name in sorted(measured.keys() & other.keys()) if measured[name] != other[name]]
    if different:
        problems.append(f"{', '.join(different)} was measured on other data or with other settings")
    return problems
