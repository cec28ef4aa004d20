"""Results about the quality of trained SAEs: in bfloat16, by batch and rate, and at equal tokens against the peers."""

from __future__ import annotations

import math
import statistics
from itertools import compress
from typing import Any

from benchmarks.training_tables import Result, Rows, conditions, table

QUALITY_AIMS = {"fve": ("FVE", 0.002), "dead_share": ("the dead share", 0.005)}
"""By how much an SAE trained in bfloat16 may differ from one trained in float32, figure by figure."""
NEAR = 0.1
"""How far from the target L0 an SAE with an L1 penalty may be, as a share of it."""
RECIPES = {"default": "its own", "ours": "our rates", "scaled": "our rates, scaled inputs"}


def quality(result: Result, clock: str) -> str:
    """Each SAE trained in float32 and in bfloat16 from the same seed, and the largest differences beside what is allowed."""
    runs = result["runs"]
    rows: Rows = [
        ("SAE", "FVE", "in bf16", "difference", "dead share", "in bf16", "difference", "L0", "in bf16", "way")
    ]
    largest = dict.fromkeys(QUALITY_AIMS, 0.0)
    for name in (run.removesuffix(", float32") for run in runs if run.endswith(", float32")):
        if (rounded := runs.get(f"{name}, bf16")) is None:
            continue
        exact, cells = runs[f"{name}, float32"], []
        for figure in QUALITY_AIMS:
            difference = round(rounded[figure] - exact[figure], 4) + 0.0  # without the sign of a zero
            largest[figure] = max(largest[figure], abs(difference))
            cells += [f"{exact[figure]:.4f}", f"{rounded[figure]:.4f}", f"{difference:+.4f}"]
        ways = "+".join(sorted({*exact["ways"], *rounded["ways"]}))
        rows.append((name, *cells, f"{exact['l0']:.1f}", f"{rounded['l0']:.1f}", ways))
    verdicts = [
        f"{label} differs by at most {largest[figure]:.4f}, which {'is' if largest[figure] < aim else 'is not'} below {aim:g}"
        for figure, (label, aim) in QUALITY_AIMS.items()
    ]
    return "\n\n".join([conditions(result, "wall"), table(*rows), "; ".join(verdicts) + "."])


def recipe(result: Result, clock: str) -> str:
    """Each combination of length, batch, rate and mask that was tried, the best of each length and mask in bold."""
    runs = sorted(result["runs"], key=lambda run: (run["tokens"], run["mask"], run["batch_tokens"], run["lr"]))
    best: dict[tuple[int, str], float] = {}
    for run in runs:
        group = run["tokens"], run["mask"]
        best[group] = max(best.get(group, -1.0), run["fve_without_outliers"])
    rows: Rows = [("tokens", "mask", "batch", "steps", "lr", "FVE w/o outliers", "FVE", "dead share", "L0", "CPU s")]
    for run in runs:
        fve = f"{run['fve_without_outliers']:.4f}"
        rows.append(
            (
                f"{run['tokens']:,}",
                run["mask"],
                str(run["batch_tokens"]),
                f"{run['steps']:,}",
                f"{run['lr']:g}",
                f"**{fve}**" if run["fve_without_outliers"] == best[run["tokens"], run["mask"]] else fve,
                f"{run['fve']:.4f}",
                f"{run['dead_share']:.4f}",
                f"{run['l0']:.1f}",
                f"{run['cpu_seconds']:.0f}",
            )
        )
    return "\n\n".join([conditions(result, "cpu"), table(*rows)])


def on_the_fly(result: Result, clock: str) -> str:
    """Each mask on stored activations and through each buffer: means over seeds, and differences from stored ones."""
    found: dict[tuple[str, int | None], dict[int, Result]] = {}
    for run in result["runs"]:
        found.setdefault((run["mask"], run["buffer"]), {})[run["seed"]] = run
    rows: Rows = [("mask", "activations", "seeds", "FVE w/o outliers", "from stored", "FVE", "dead share", "L0")]
    for (mask, buffer), seeds in sorted(
        found.items(), key=lambda item: (item[0][0] != "none", item[0][0], item[0][1] or 0)
    ):
        stored = found.get((mask, None), {})
        both = [(seeds[seed], stored[seed]) for seed in seeds if seed in stored]
        differences = [own["fve_without_outliers"] - other["fve_without_outliers"] for own, other in both]
        spread = f" ({min(differences):+.4f} to {max(differences):+.4f})" if differences else ""
        means = {
            name: statistics.mean(seed[name] for seed in seeds.values())
            for name in ("fve_without_outliers", "fve", "dead_share", "l0")
        }
        rows.append(
            (
                mask,
                "stored" if buffer is None else f"buffer of {buffer:,} tokens",
                str(len(seeds)),
                f"{means['fve_without_outliers']:.4f}",
                "" if buffer is None or not differences else f"{statistics.mean(differences):+.4f}{spread}",
                f"{means['fve']:.4f}",
                f"{means['dead_share']:.4f}",
                f"{means['l0']:.1f}",
            )
        )
    return "\n\n".join([conditions(result, "wall"), table(*rows)])


def is_near(l0: float | None, target: int) -> bool:
    """Whether the L0 of an SAE with an L1 penalty is near enough to the target."""
    return l0 is not None and abs(l0 - target) <= NEAR * target


def equal_tokens(result: Result, clock: str) -> str:
    """Each SAE of ours and of the peers, means over seeds; the best of those with the L0 wanted in bold."""
    target = result["settings"]["k"]
    found: dict[tuple[int, str, str, str], dict[int, Result]] = {}
    for run in result["runs"]:
        seeds = found.setdefault((run["tokens"], run["kind"], run["who"], run["recipe"]), {})
        # Of the trainings with several L1 coefficients, the one nearest to the target.
        earlier = seeds.get(run["seed"])
        if earlier is None or _off(run, target) < _off(earlier, target):
            seeds[run["seed"]] = run
    order = list(found)
    best: dict[tuple[int, str], float] = {}
    for key, seeds in found.items():
        if is_near(_mean(seeds, "l0"), target):
            best[key[:2]] = max(best.get(key[:2], -1.0), _mean(seeds, "fve_without_outliers") or -1.0)
    head = (
        "tokens",
        "SAE",
        "library",
        "recipe",
        "batch",
        "steps",
        "seeds",
        "FVE w/o outliers",
        "FVE",
        "L0",
        "dead share",
    )
    rows: Rows = [(*head, "CE recovered", "probe, k 1", "probe, k 5", "CPU s", "wall s")]
    for key in sorted(order, key=lambda key: (key[0], key[1] != "topk", order.index(key))):
        tokens, kind, who, recipe = key
        seeds = found[key]
        first = next(iter(seeds.values()))
        fve, l0 = _shown(seeds, "fve_without_outliers", 4), _mean(seeds, "l0")
        if is_near(l0, target) and fve == f"{best[key[:2]]:.4f}":
            fve = f"**{fve}**"
        rows.append(
            (
                f"{tokens:,}",
                kind,
                who,
                RECIPES[recipe],
                f"{first['batch_tokens']:,}",
                f"{first['steps']:,}",
                str(len(seeds)),
                fve,
                _shown(seeds, "fve", 4),
                _shown(seeds, "l0", 1) + ("" if is_near(l0, target) else ", not matched"),
                _shown(seeds, "dead_share", 4),
                _shown(seeds, "ce_loss_recovered", 4),
                _shown(seeds, "probe_1", 3),
                _shown(seeds, "probe_5", 3),
                _shown(seeds, "cpu_seconds", 0),
                _shown(seeds, "wall_seconds", 0),
            )
        )
    measured = [any(cells) for cells in zip(*rows[1:], strict=True)]
    return "\n\n".join([conditions(result, "cpu"), table(*(tuple(compress(row, measured)) for row in rows))])


def _off(run: Result, target: int) -> float:
    return abs(math.log(max(run["l0"] or 0.0, 0.1) / target))


def _mean(seeds: dict[int, Result], figure: str) -> float | None:
    """Over the seeds that have the figure; None if none has."""
    values: list[Any] = [run[figure] for run in seeds.values() if run.get(figure) is not None]
    return statistics.mean(values) if values else None


def _shown(seeds: dict[int, Result], figure: str, digits: int) -> str:
    mean = _mean(seeds, figure)
    return "" if mean is None else f"{mean:.{digits}f}"
