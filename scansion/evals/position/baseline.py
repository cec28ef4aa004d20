"""Excess specialisation over the SAE without a mask: compared only where both are equally sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scansion.evals.position.result import PositionResult

L0_TOLERANCE = 0.1


@dataclass(frozen=True)
class OverUnmasked:
    """Information with the mask in force minus that of the baseline, in bits per feature, or why there is no such figure."""

    value: float | None
    why_not: str | None


def excess_over_unmasked(results: Sequence[PositionResult]) -> list[OverUnmasked]:
    """Compare each SAE with the first of them that is sound and has no mask.

    Information grows with how often features fire, so that SAEs whose L0 differ by more than a tenth are not compared.
    """
    baseline = next((one for one in results if not one.sae_config.mask.has_weights and one.status == "ok"), None)
    return [_compared(one, baseline) for one in results]


def _compared(one: PositionResult, baseline: PositionResult | None) -> OverUnmasked:
    if baseline is None:
        return OverUnmasked(None, "no SAE without a mask is among them")
    if one is baseline:
        return OverUnmasked(None, "it is the baseline")
    if one.status == "degenerate":
        return OverUnmasked(None, "it is degenerate")
    ours, theirs = one.in_force, baseline.in_force
    if ours.l0 is None or theirs.l0 is None or abs(ours.l0 - theirs.l0) > L0_TOLERANCE * theirs.l0:
        return OverUnmasked(None, f"its L0 is {ours.l0 or 0:.1f}, that of {baseline.sae} {theirs.l0 or 0:.1f}")
    if ours.information.value is None or theirs.information.value is None:
        return OverUnmasked(None, "its information is not known")
    return OverUnmasked(ours.information.value - theirs.information.value, None)
