"""All results of one SAE together: its status, its headline figures, and whether it may be compared with another's."""

from __future__ import annotations

from dataclasses import dataclass

from scansion.evals.core.evaluate import CoreResult
from scansion.evals.position import PositionResult
from scansion.evals.probing.result import SparseProbingResult

# Runs that differ in one of these answer different questions.
_MUST_AGREE = ("model", "model_revision", "hook_point", "contexts", "context_length", "use_position_0", "tokens")


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
        found = [reason for one in (self.core, self.sparse_probing, self.position) if one for reason in one.reasons]
        return list(dict.fromkeys(found))

    def means(self) -> dict[str, float | None]:
        """Every headline figure by name; empty for a degenerate dictionary, whose figures mean nothing."""
        if self.reasons:
            return {}
        core = self.core
        found: dict[str, float | None] = {
            "fve": core.fve.value,
            "normalised_mse": core.normalised_mse,
            "cosine": core.cosine,
            "l0": core.l0,
            "l1": core.l1,
            "dead_share": core.dead_share,
            "dense_share": core.dense_share,
            "duplicate_share": core.duplicate_share,
        }
        if core.ce_loss_recovered:
            found |= {"ce_loss_recovered": core.ce_loss_recovered.value, "ce_loss": core.ce_loss, "kl": core.kl}
        for one in (self.sparse_probing, self.position):
            found |= one.headline() if one else {}
        return found

    def not_comparable_with(self, other: RunResults) -> list[str]:
        """What differs between two runs that makes their figures answer different questions; empty if nothing does."""
        here, there = self.core.sae_metadata, other.core.sae_metadata
        problems = [
            f"{name} is {getattr(here, name)!r}, not {getattr(there, name)!r}"
            for name in _MUST_AGREE
            if getattr(here, name) != getattr(there, name)
            and not (name in ("model", "model_revision") and here.model_id.same_as(there.model_id))
        ]
        if self.core.data != other.core.data:
            problems.append("it was evaluated on other data or with other settings")
        return problems
