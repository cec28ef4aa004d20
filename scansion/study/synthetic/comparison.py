"""From cells to figures with intervals: each variant's mean over seeds, and its paired difference to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from scansion.evals.core.evaluate import CoreResult
from scansion.evals.recovery import RecoveryResult
from scansion.evals.recovery.result import GroupRecovery
from scansion.evals.statistics import Estimate
from scansion.study.synthetic.execute import CellResult
from scansion.study.synthetic.plan import SyntheticPlan


@dataclass(frozen=True)
class Metric:
    """A figure of one trained SAE.

    Attributes:
        title: heading in tables.
        meaning: what it is, in a few words.
        read: the figure, or None where it does not apply (bound features in a world without any).
        digits: shown after the point.
        chance: name of the metric that holds its chance level, shown beside it and not by itself.
    """

    title: str
    meaning: str
    read: Callable[[CoreResult, RecoveryResult], float | None]
    digits: int = 3
    chance: str | None = None


def _of(
    group: str, read: Callable[[GroupRecovery], float | None]
) -> Callable[[CoreResult, RecoveryResult], float | None]:
    return lambda _, recovery: read(recovery.groups[group]) if group in recovery.groups else None


METRICS: dict[str, Metric] = {
    "fve": Metric("FVE", "variance explained on held-out contexts", lambda core, _: core.fve.value),
    "l0": Metric("L0", "active learnt features a token", lambda core, _: core.l0, digits=2),
    "dead": Metric("dead", "share of learnt features that never fired", lambda core, _: core.dead_share),
    "mmcs": Metric(
        "MMCS",
        "mean over true features of the largest cosine",
        _of("all", lambda group: group.mmcs),
        chance="mmcs_chance",
    ),
    "recovered": Metric("recovered", "share of true features found (cosine > 0.9)", _of("all", lambda g: g.recovered)),
    "recovered_bound": Metric(
        "rec. bound", "share of position-bound true features found", _of("bound", lambda g: g.recovered)
    ),
    "recovered_unbound": Metric(
        "rec. unbound", "share of unbound true features found", _of("unbound", lambda g: g.recovered)
    ),
    "firing_match": Metric(
        "firing match",
        "bound features: overlap of true and learnt firing profiles, paired one-to-one",
        _of("bound", lambda group: group.firing.overlap),
        chance="firing_chance",
    ),
    "mask_match": Metric(
        "mask match",
        "bound features: overlap of true profile and mask weights, paired one-to-one",
        _of("bound", lambda group: group.mask.overlap),
        chance="mask_chance",
    ),
    "mask_iou": Metric(
        "mask IoU",
        "bound features: intersection over union of the supports of true profile and mask",
        _of("bound", lambda group: group.mask.iou),
        chance="mask_iou_chance",
    ),
    "duplicates": Metric(
        "duplicates", "share of learnt features with a twin (cosine > 0.9)", lambda _, r: r.duplicates
    ),
    "spurious": Metric(
        "spurious",
        "share of unbound features whose counterpart fires at fewer than half the positions",
        lambda _, r: r.spurious_firing,
    ),
}
"""What the tables show, in order."""

CHANCES: dict[str, Callable[[CoreResult, RecoveryResult], float | None]] = {
    "mmcs_chance": lambda _, recovery: recovery.mmcs_chance,
    "firing_chance": _of("bound", lambda group: group.firing.overlap_chance),
    "mask_chance": _of("bound", lambda group: group.mask.overlap_chance),
    "mask_iou_chance": _of("bound", lambda group: group.mask.iou_chance),
}
"""What a figure would be for random directions, or under random pairing."""


class VariantSummary(BaseModel):
    """One variant in one world.

    Attributes:
        by_seed: metric -> its values in the order of the study's seeds; None where it does not apply or the seed's SAE
            is degenerate.
        degenerate: seed -> why its SAE means nothing; such seeds are in no estimate.
        estimates: metric (chance levels too) -> mean and 95% t-interval over sound seeds.
        differences: metric -> the same of the difference to the reference, seed by seed; empty for the reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    by_seed: dict[str, list[float | None]]
    degenerate: dict[int, list[str]]
    estimates: dict[str, Estimate]
    differences: dict[str, Estimate]


class WorldSummary(BaseModel):
    """All variants in one world; ``settings`` are the world's, less the seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: dict[str, Any]
    variants: list[VariantSummary]


class StudySummary(BaseModel):
    """A synthetic study's figures, complete enough to draw every table and figure from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    seeds: list[int]
    reference: str
    training: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    worlds: list[WorldSummary]


def compare(plan: SyntheticPlan, cells: Sequence[CellResult]) -> StudySummary:
    """Summarise the cells of a plan."""
    worlds: list[WorldSummary] = []
    for world in plan.worlds:
        of_seed = {cell.seed: cell for cell in cells if cell.world == world.name}
        here = [of_seed[seed] for seed in plan.seeds]
        reference = _values(plan.reference, here)
        worlds.append(
            WorldSummary(
                name=world.name,
                settings=plan.world_config(world, plan.seeds[0]).model_dump(mode="json", exclude={"seed"}),
                variants=[
                    _variant(variant.name, here, None if variant.name == plan.reference else reference)
                    for variant in plan.variants
                ],
            )
        )
    return StudySummary(
        name=plan.name,
        seeds=list(plan.seeds),
        reference=plan.reference,
        training=plan.training,
        variants={
            variant.name: {"sae": variant.sae.model_dump(mode="json"), "training": variant.training}
            for variant in plan.variants
        },
        worlds=worlds,
    )


def _variant(name: str, cells: Sequence[CellResult], reference: dict[str, list[float | None]] | None) -> VariantSummary:
    values = _values(name, cells)
    return VariantSummary(
        name=name,
        by_seed=values,
        degenerate={cell.seed: reasons for cell in cells if (reasons := _reasons(name, cell))},
        estimates={metric: Estimate.of_seeds(_known(column)) for metric, column in values.items()},
        differences={
            metric: Estimate.of_seeds(
                [a - b for a, b in zip(column, reference[metric], strict=True) if a is not None and b is not None]
            )
            for metric, column in values.items()
            if metric in METRICS
        }
        if reference
        else {},
    )


def _values(name: str, cells: Sequence[CellResult]) -> dict[str, list[float | None]]:
    readers = {metric: METRICS[metric].read for metric in METRICS} | CHANCES
    return {
        metric: [None if _reasons(name, cell) else read(cell.core[name], cell.recovery[name]) for cell in cells]
        for metric, read in readers.items()
    }


def _reasons(name: str, cell: CellResult) -> list[str]:
    return list(dict.fromkeys(cell.core[name].reasons + cell.recovery[name].reasons))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
