"""The same plan at several seeds: every figure as a mean with its interval, and as a difference from the first run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from scansion.errors import ConfigError
from scansion.evals.bundle import Evaluations
from scansion.evals.position import OverUnmasked, excess_over_unmasked
from scansion.evals.result import Estimate, detectable_difference
from scansion.files import atomic_file, write_json
from scansion.progress import say
from scansion.study.execute import execute
from scansion.study.plan import StudyPlan


@dataclass(frozen=True)
class SeededRun:
    """One entry of a plan at all its seeds.

    Attributes:
        name: of the entry.
        results: one for each seed, in the plan's order.
        step_ms: median milliseconds of one training step of this SAE alone, one for each seed; None off the CPU.
    """

    name: str
    results: list[Evaluations]
    step_ms: list[float | None]

    @property
    def reasons(self) -> list[str]:
        """Why some seed is degenerate or cannot be compared; empty if none is."""
        return list(dict.fromkeys(reason for result in self.results for reason in result.reasons))


_FIGURES: dict[str, tuple[str, Callable[[Evaluations], float | None]]] = {
    "fve": ("FVE", lambda e: e.core.fve.value),
    "l0": ("L0", lambda e: e.core.l0),
    "dead_share": ("dead", lambda e: e.core.dead_share),
    "ce_loss_recovered": ("CE recovered", lambda e: e.core.ce_loss_recovered and e.core.ce_loss_recovered.value),
    "duplicate_share": ("duplicates", lambda e: e.core.duplicate_share),
    "position_information": ("position, mbit", lambda e: _thousandths(e, "position_information")),
    "position_information_lifted": ("lifted, mbit", lambda e: _thousandths(e, "position_information_lifted")),
    "excess_specialisation": ("over permuted, mbit", lambda e: _thousandths(e, "excess_specialisation")),
    "positional_fidelity": ("AUROC of mask", lambda e: e.means().get("positional_fidelity")),
    "position_retention": ("retention", lambda e: e.means().get("position_retention")),
}
# It compares the runs of one seed with one another, and so is no figure of one run's evaluations.
_OVER_UNMASKED = "excess_over_unmasked"
_HEADINGS = {name: heading for name, (heading, _) in _FIGURES.items()} | {_OVER_UNMASKED: "over unmasked, mbit"}
_DIFFERENCES = ("fve", "ce_loss_recovered")


def execute_seeds(plan: StudyPlan, out: Path) -> list[SeededRun]:
    """Carry the plan out at each of its seeds, in ``out/run_<entry>/seed_<seed>``; what is there is not done again.

    Raises:
        ScansionError: whatever stops the study, as far as possible before any heavy work.
    """
    results: dict[int, list[Evaluations]] = {index: [] for index in range(len(plan.runs))}
    for number, seed in enumerate(plan.seeds, 1):
        say(f"seed {seed} ({number} of {len(plan.seeds)})")
        found, _ = execute(plan.at_seed(seed), {index: _folder(out, index, seed) for index in results})
        for index, evaluations in found.items():
            results[index].append(evaluations)
    return [
        SeededRun(run.name, results[index], [_step_ms(_folder(out, index, seed)) for seed in plan.seeds])
        for index, run in enumerate(plan.runs)
    ]


def _folder(out: Path, index: int, seed: int) -> Path:
    return out / f"run_{index}" / f"seed_{seed}"


def _step_ms(folder: Path) -> float | None:
    if not (folder / "metrics.jsonl").exists():  # no step was taken
        return None
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["step_ms"] for line in lines]
    return statistics.median(found) if found and None not in found else None


@dataclass(frozen=True)
class Row:
    """Figures of one run: means over seeds, and paired differences from the plan's first run.

    ``detectable`` holds, for each difference, the smallest one that so many seeds would have found with a probability of
    80%.
    """

    run: str
    features: int
    mask: str
    figures: dict[str, Estimate]
    differences: dict[str, Estimate]
    detectable: dict[str, float | None]
    step_ms: Estimate | None
    set_apart: str | None
    why_not: str | None = None
    """Why there is no excess over the run without a mask, where position was measured."""


def rows_of(runs: list[SeededRun]) -> list[Row]:
    """One row a run. Differences are paired by seed, for runs of one seed saw the same batches.

    Raises:
        ConfigError: there is nothing to compare.
    """
    if not runs:
        raise ConfigError("there is no run to compare")
    baseline = runs[0]
    rows: list[Row] = []
    for run, over_unmasked in zip(runs, _over_unmasked(runs), strict=True):
        problems = run.reasons or [
            problem
            for ours, theirs in zip(run.results, baseline.results, strict=True)
            for problem in ours.not_comparable_with(theirs)
        ]
        figures = {} if problems else {name: _over_seeds(run.results, get) for name, (_, get) in _FIGURES.items()}
        excesses = [1000 * one.value for one in over_unmasked if one.value is not None]
        if figures and len(excesses) == len(run.results):
            figures[_OVER_UNMASKED] = Estimate.of_seeds(excesses)
        differences = (
            {}
            if problems or run is baseline or baseline.reasons
            else {name: _differences(run.results, baseline.results, _FIGURES[name][1]) for name in _DIFFERENCES}
        )
        times = [value for value in run.step_ms if value is not None]
        config = run.results[0].core.sae_config
        rows.append(
            Row(
                run=run.name,
                features=config.d_sae,
                mask=config.mask.family,
                figures=figures,
                differences={name: Estimate.of_seeds(values) for name, values in differences.items()},
                detectable={name: detectable_difference(values) for name, values in differences.items()},
                step_ms=Estimate.of_seeds(times) if times else None,
                set_apart="; ".join(dict.fromkeys(problems)) or None,
                why_not="; ".join(dict.fromkeys(one.why_not for one in over_unmasked if one.why_not)) or None,
            )
        )
    return rows


def _over_unmasked(runs: list[SeededRun]) -> list[list[OverUnmasked]]:
    """For each run, its excess over the run without a mask at each seed; nothing where position was not measured."""
    found: list[list[OverUnmasked]] = [[] for _ in runs]
    for of_seed in zip(*(run.results for run in runs), strict=True):
        measured = [(index, one.position) for index, one in enumerate(of_seed) if one.position is not None]
        compared = excess_over_unmasked([position for _, position in measured])
        for (index, _), excess in zip(measured, compared, strict=True):
            found[index].append(excess)
    return found


def _thousandths(evaluations: Evaluations, name: str) -> float | None:
    value = evaluations.means().get(name)
    return None if value is None else 1000 * value


def _over_seeds(results: list[Evaluations], get: Callable[[Evaluations], float | None]) -> Estimate:
    return Estimate.of_seeds([value for result in results if (value := get(result)) is not None])


def _differences(
    ours: list[Evaluations], theirs: list[Evaluations], get: Callable[[Evaluations], float | None]
) -> list[float]:
    pairs = [(get(one), get(other)) for one, other in zip(ours, theirs, strict=True)]
    return [a - b for a, b in pairs if a is not None and b is not None]


def cells_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, for any kind of table. A star marks a difference whose interval excludes 0.

    Figures that no run has are left out.
    """
    shown = [
        name for name in _HEADINGS if any(name in row.figures and row.figures[name].value is not None for row in rows)
    ]
    headings = ["run", "features", *(_HEADINGS[name] for name in shown)]
    headings += [f"{_FIGURES[name][0]} - first run's" for name in _DIFFERENCES] + ["step, ms"]
    body: list[list[str]] = []
    for row in rows:
        if row.set_apart:
            body.append([row.run, f"{row.features:,}", row.set_apart] + [""] * (len(headings) - 3))
            continue
        cells = [row.run, f"{row.features:,}"]
        for name in shown:
            estimate = row.figures.get(name)
            value = estimate and estimate.value
            cells.append("-" if value is None else f"{value:.1f}" if name == "l0" else str(estimate))
        for name in _DIFFERENCES:
            estimate = row.differences.get(name)
            star = " *" if estimate is not None and estimate.excludes_zero else ""
            cells.append("" if estimate is None or estimate.value is None else f"{estimate}{star}")
        cells.append("" if row.step_ms is None or row.step_ms.value is None else f"{row.step_ms.value:.0f}")
        body.append(cells)
    return headings, body


def terminal_table(rows: list[Row]) -> Table:
    """The table for a terminal."""
    headings, body = cells_of(rows)
    table = Table(*headings)
    for cells in body:
        table.add_row(*cells)
    return table


def _what_could_be_detected(rows: list[Row]) -> list[str]:
    """A sentence for each kind of difference: how small a one this study could have found."""
    lines: list[str] = []
    for name in _DIFFERENCES:
        found = [value for row in rows if (value := row.detectable.get(name)) is not None]
        if found:
            lines.append(
                f"{_FIGURES[name][0]}: a true difference of {statistics.median(found):.3f} (median over the runs; largest "
                f"{max(found):.3f}) would have been found with a probability of 80%."
            )
    return lines


def write_table(plan: StudyPlan, rows: list[Row], out: Path) -> Path:
    """Write ``table.md`` and ``results.json`` to ``out``; returns the path of the former."""
    headings, body = cells_of(rows)
    lines = [
        f"Means over seeds {', '.join(map(str, plan.seeds))} with 95% t-intervals; differences are paired by seed, and a "
        "star marks one whose interval excludes 0. A step is the median time of one training step of that SAE alone.",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
        *_what_could_be_detected(rows),
        *(f"{row.run}: not compared with the unmasked SAE, for {row.why_not}." for row in rows if row.why_not),
    ]
    with atomic_file(out / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        out / "results.json",
        {
            "plan": plan.model_dump(mode="json"),
            "rows": [
                {
                    "run": row.run,
                    "features": row.features,
                    "mask": row.mask,
                    "figures": {name: one.model_dump() for name, one in row.figures.items()},
                    "differences": {name: one.model_dump() for name, one in row.differences.items()},
                    "detectable": row.detectable,
                    "step_ms": row.step_ms and row.step_ms.model_dump(),
                    "set_apart": row.set_apart,
                    "why_not": row.why_not,
                }
                for row in rows
            ],
        },
    )
    return out / "table.md"
