"""The constants of ``scansion plan``: ``python -m benchmarks.fit_plan`` fits them to the committed measurements.

It writes scansion/planning/fitted.json and, into docs/scale.md, what the fitted model says of every measurement, and what a
model says that was fitted without it. A test compares both with this script's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from cyclopts import App
from scipy.optimize import nnls

from scansion.files import atomic_file
from scansion.planning import MachineConfig, Reliability, Workload, best_interval, estimate, kind_of, young
from scansion.planning.failures import simulate
from scansion.planning.machines import COMPUTE, FITTED, PUBLISHED
from scansion.planning.workload import WORK, DictionaryConfig, ModelSizes, model_sizes
from scansion.records import read_json, write_json

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BLOCK = re.compile(r"(<!-- fitted: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BEYOND = 0.2
"""Relative error from which a measurement is printed by itself."""
app = App(help_format="plaintext")

Work = dict[str, float]
STAGE = "stage"
_NOTHING = dict.fromkeys(WORK, 0.0)
# Stage -> groups of operations in profile.json, and the work that they are.
PROFILED = {
    "encoder product": (("matrix products",), ("screened", "products")),
    "selection": (("selection",), ("selected",)),
    "sums over active entries": (("sums over active entries, in C",), ("active",)),
    "Adam and passes over rows": (("adam", "passes over decoder rows, in C", "norms and sums"), ("parameters",)),
}


@dataclass(frozen=True)
class Measurement:
    """A measured time, and the work that it was.

    Attributes:
        what: in words.
        size: measurements of one size are left out together; stages of a step, whose size is STAGE, always stay.
        work: see :meth:`DictionaryConfig.work`.
        seconds: measured.
    """

    what: str
    size: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Fit:
    """Constants, and what they give for each measurement.

    Attributes:
        constants: seconds per unit of each work that was measured.
        predicted: seconds, in the order of the measurements.
        held_out: the same, by constants fitted to measurements of other sizes alone.
    """

    constants: Work
    predicted: list[float]
    held_out: list[float]


def steps_on_cpu() -> list[Measurement]:
    """Whole training steps of all our subjects, plain products, and stages of two steps."""
    found = _stages()
    for name in ("training", "training_large", "training_wide"):
        stored = read_json(RESULTS / f"{name}.json")
        sizes = stored["settings"]
        for part in stored.values():
            for subject, times in part.get("times", {}).items() if "rounds" in part else ():
                if subject.endswith(" product"):  # without these, fits could not tell products from passes over entries
                    work = {**_NOTHING, "products": stored["work"][subject]["flop"]}
                    found.append(Measurement(subject, STAGE, work, times["wall_seconds"]))
                if subject.startswith("scansion "):
                    kind, _, form = subject.removeprefix("scansion ").partition(", ")
                    size = (sizes["d_in"], sizes["d_sae"], sizes["k"], sizes["batch_tokens"])
                    found.append(_step(kind, form or "no mask", size, 1, times["wall_seconds"]))
    growth = read_json(RESULTS / "growth.json")
    base = growth["settings"]["base"]
    for axis in ("d_sae", "n_positions", "bands", "n_saes", "batch_tokens"):
        for form, seconds in growth[axis]["seconds"].items():
            for value, measured in zip(growth[axis]["values"], seconds, strict=True):
                here = {**base, axis: value}
                size = (here["d_in"], here["d_sae"], here["k"], here["batch_tokens"])
                found.append(
                    _step("topk", f"{value} bands" if axis == "bands" else form, size, here["n_saes"], measured)
                )
    return found


def _stages() -> list[Measurement]:
    """Stages of a step without a mask and of one with 8 bands, as the profiler saw them."""
    stored = read_json(RESULTS / "profile.json")
    sizes = stored["settings"]
    found: list[Measurement] = []
    for form, bands in (("none", 1), ("8", 8)):
        config = DictionaryConfig(d_sae=sizes["d_sae"], k=sizes["k"], bands=bands)
        work = config.work(sizes["d_in"], sizes["batch_tokens"])
        for what, (groups, names) in PROFILED.items():
            own = {name: work[name] if name in names else 0.0 for name in WORK}
            seconds = sum(stored[form]["groups"][group] for group in groups)
            found.append(Measurement(f"{what}, {bands} bands" if bands > 1 else what, STAGE, own, seconds))
    return found


def _step(kind: str, form: str, size: tuple[int, int, int, int], n_saes: int, seconds: float) -> Measurement:
    d_in, d_sae, k, tokens = size
    # The dense form and learnt masks compute whole matrices, as ReLU does.
    architecture = "relu" if form in ("dense form", "soft mask") else kind
    bands = int(form.removesuffix(" bands")) if form.endswith("bands") else 1
    config = DictionaryConfig.model_validate({"architecture": architecture, "d_sae": d_sae, "k": k, "bands": bands})
    work = {name: n_saes * amount for name, amount in config.work(d_in, tokens).items()}
    many = f", {n_saes} SAEs" if n_saes > 1 else ""
    return Measurement(f"{kind}, {form}{many}", f"{d_in} x {d_sae:,}, {tokens:,} tokens", work, seconds)


def steps_on_gpu() -> list[Measurement]:
    """Stages of one step at size A, and whole steps, of the prototypes that the CUDA kernels were written from."""
    stored = read_json(RESULTS / "gpu_prototypes.json")
    found: list[Measurement] = []
    for row in stored["steps"]:
        size = stored["sizes"][row["size"]]
        d_in, d_sae, k, tokens = (size[name] for name in ("d_in", "d_sae", "k", "batch_tokens"))
        config = DictionaryConfig.model_validate(
            {"d_sae": d_sae, "k": k, "architecture": row["architecture"], "bands": row["bands"]}
        )
        work = config.work(d_in, tokens)
        # On a GPU the encoder product is never screened.
        work["products"], work["screened"] = work["products"] + work["screened"], 0.0
        if "stage" in row:
            work = {name: amount if name in row["stage"] else 0.0 for name, amount in work.items()}
        size_name = STAGE if "stage" in row else f"size {row['size']}"
        found.append(Measurement(row["what"], size_name, work, row["ms"] / 1000))
    return found


def fit(measurements: Sequence[Measurement], without: Sequence[str] = ()) -> Fit:
    """Constants that are not negative, with the least sum of squared relative errors; 0 for work that was not measured.

    Args:
        measurements: what to fit.
        without: work that these measurements cannot tell from other work.
    """
    names = [name for name in WORK if name not in without and any(one.work[name] for one in measurements)]
    constants = _solve(measurements, names)
    predicted = [_predict(constants, one) for one in measurements]
    held_out: list[float] = []
    for one in measurements:
        others = [other for other in measurements if other.size != one.size]
        # Work that only this size has cannot be fitted without it.
        able = one.size != STAGE and all(any(other.work[name] for other in others) for name in names if one.work[name])
        held_out.append(_predict(_solve(others, names), one) if able else float("nan"))
    return Fit(constants, predicted, held_out)


def _solve(measurements: Sequence[Measurement], names: Sequence[str]) -> Work:
    rows = np.array([[one.work[name] / one.seconds for name in names] for one in measurements])
    scale = rows.max(axis=0)
    scale[scale == 0] = 1
    solution = cast(np.ndarray, nnls(rows / scale, np.ones(len(rows)))[0]) / scale
    return dict(zip(names, (float(f"{value:.4g}") for value in solution), strict=True))


def _predict(constants: Work, one: Measurement) -> float:
    return sum(constant * one.work[name] for name, constant in constants.items())


def kinds() -> tuple[dict[str, Any], dict[str, tuple[list[Measurement], Fit]]]:
    """The content of fitted.json, and the fits it comes from."""
    gpu = read_json(RESULTS / "gpu_prototypes.json")
    cpu_steps, gpu_steps = steps_on_cpu(), steps_on_gpu()
    # Kernels of the smallest size wait for their launches: such steps are the floor, and say nothing about work.
    small = [one for one in gpu_steps if one.size == "size C"]
    gpu_steps = [one for one in gpu_steps if one not in small]
    # All dense steps have one width, so that their passes over entries and over the batch look alike.
    gpu_fit = fit(gpu_steps, without=("steps", "batch"))
    fits = {"cpu2": (cpu_steps, fit(cpu_steps)), "h200": (gpu_steps, gpu_fit)}
    limits = gpu["limits"]
    faster = limits["h200"]["product_flops"] / limits["h100"]["product_flops"]
    wider = limits["h200"]["copy_bandwidth"] / limits["h100"]["copy_bandwidth"]
    h200 = fits["h200"][1].constants
    forward, host = _harvest_on_gpu(gpu["harvest"])
    stored = {
        "cpu2": {
            "basis": "fitted to whole steps measured on two cores of an AMD EPYC with AVX-512 BF16",
            "measured": True,
            "seconds_per": _every(fits["cpu2"][1].constants),
            "floor": {"sparse": 0.0, "dense": 0.0},
            "forward": _harvest_on_cpu(),
            "host": 0.0,
            "screens": True,
            "reads_ahead": False,
            "memory": None,
        },
        "h200": {
            "basis": "fitted to prototypes of the CUDA kernels on an H200; the kernels themselves were never timed",
            "measured": True,
            "seconds_per": _every(h200),
            "floor": {
                "sparse": max(one.seconds for one in small if not one.work["dense"]),
                "dense": max(one.seconds for one in small if one.work["dense"]),
            },
            "forward": _rounded(forward / faster),
            "host": host,
            "screens": False,
            "reads_ahead": True,
            "memory": PUBLISHED["h200"].memory,
        },
    }
    stored["h100"] = {
        **stored["h200"],
        "basis": "derived, not measured: the h200's constants, at the rates of products and copies measured on an H100",
        "measured": False,
        "seconds_per": _every({name: value * (faster if name in COMPUTE else wider) for name, value in h200.items()}),
        "forward": forward,
        "memory": PUBLISHED["h100"].memory,
    }
    return {"kinds": stored}, fits


def _every(constants: Work) -> Work:
    return {name: _rounded(constants.get(name, 0.0)) for name in WORK}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _harvest_on_cpu() -> float:
    """Seconds per operation from text to disk; what is not the forward pass is 4% of it."""
    stored = read_json(RESULTS / "harvest.json")
    sizes = stored["settings"]
    flop = sizes["tokens"] * model_sizes(sizes["model"]).flop_per_token(sizes["layer"] + 1, sizes["context_length"])
    return _rounded(stored["harvest"]["times"]["scansion, language model to disk"]["wall_seconds"] / flop)


def _harvest_on_gpu(row: dict[str, Any]) -> tuple[float, float]:
    """Seconds per operation of the forward pass, and per byte from the model to the store."""
    model: ModelSizes = model_sizes(row["model"])
    flop = model.flop_per_token(row["layers"], 0)  # the length of its contexts is not recorded
    rest = 1 / row["store_tokens_per_second"] - 1 / row["forward_tokens_per_second"]
    moved = model.d_model * row["bytes_per_activation"]
    return _rounded(1 / row["forward_tokens_per_second"] / flop), _rounded(rest / moved)


def errors(measurements: list[Measurement], found: Fit) -> str:
    """A paragraph that sums up, and the table of every measurement."""
    own = np.array([p / one.seconds for p, one in zip(found.predicted, measurements, strict=True)])
    other = np.array([p / one.seconds for p, one in zip(found.held_out, measurements, strict=True)])
    far = [
        f"{one.what}, {one.size} ({ratio:.2f})"
        for one, ratio in zip(measurements, own, strict=True)
        if abs(ratio - 1) > BEYOND
    ]
    far_other = int((np.abs(other - 1) > BEYOND).sum())
    lines = [
        f"{len(measurements)} measurements. Mean error {np.abs(own - 1).mean():.1%}, largest {np.abs(own - 1).max():.1%}; "
        f"without those of the same size in the fit: mean {np.nanmean(np.abs(other - 1)):.1%}, "
        f"largest {np.nanmax(np.abs(other - 1)):.1%}, {far_other} beyond 20%. "
        + (f"Beyond 20% in the fit: {'; '.join(far)}." if far else "None is beyond 20% in the fit."),
        "",
        "| step | size | measured, ms | fitted / measured | without its size |",
        "|---|---|---:|---:|---:|",
    ]
    seen: set[tuple[str, str]] = set()
    for one, ratio, apart in zip(measurements, own, other, strict=True):
        if (
            one.what,
            one.size,
        ) not in seen:  # the same step, measured again in another table, is counted but shown once
            seen.add((one.what, one.size))
            without = "-" if np.isnan(apart) else _marked(float(apart))
            lines.append(
                f"| {one.what} | {one.size} | {1000 * one.seconds:.4g} | {_marked(float(ratio))} | {without} |"
            )
    return "\n".join(lines)


def _marked(ratio: float) -> str:
    return f"**{ratio:.2f}**" if abs(ratio - 1) > BEYOND else f"{ratio:.2f}"


def constants(fits: dict[str, tuple[list[Measurement], Fit]]) -> str:
    """The table of fitted constants."""
    units = {"screened": "operation", "products": "operation", "parameters": "parameter", "steps": "step"}
    lines = [f"| picoseconds per unit | {' | '.join(fits)} |", "|---|" + "---:|" * len(fits)]
    for name in WORK:
        cells = [
            f"{1e12 * found.constants[name]:,.4g}" if name in found.constants else "-" for _, found in fits.values()
        ]
        lines.append(f"| `{name}`, per {units.get(name, 'entry')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def checks() -> str:
    """Runs that are not in the fit, and what it says of them."""
    stored = read_json(RESULTS / "plan_checks.json")
    kind = kind_of(MachineConfig(kind=stored["kind"]))
    lines = ["| run | clock | measured, s | predicted, s | predicted / measured |", "|---|---|---:|---:|---:|"]
    for row in stored["runs"]:
        each = [DictionaryConfig.model_validate(one) for one in row["dictionaries"]]
        step = sum(sum(kind.step(one.work(row["d_in"], row["batch_tokens"])).values()) for one in each)
        seconds = step * row["steps"]
        ratio = _marked(seconds / row["seconds"])
        lines.append(f"| {row['what']} | {row['clock']} | {row['seconds']:.0f} | {seconds:.0f} | {ratio} |")
    return "\n".join(lines)


def store_or_again() -> str:
    """From how many passes over 1e9 tokens storing takes less time, on one machine, by model and disk."""
    sae = DictionaryConfig(d_sae=16_384, k=64)
    disks = (0.2, 1.0, 5.0)
    lines = [
        f"| model up to | machine | {' | '.join(f'{disk:g} GB/s' for disk in disks)} |",
        "|---|---|" + "---:|" * len(disks),
    ]
    for kind in ("cpu2", "h100"):
        for model, layer in (("gpt2", 6), ("gemma-2-2b", 12), ("gemma-2-9b", 20), ("llama-3.1-8b", 15)):
            work = Workload(
                model=model_sizes(model),
                hook_points=(f"layers.{layer}",),
                tokens=10**9,
                dictionaries=(sae,),
                context_length=1024,
            )
            cells: list[str] = []
            for disk in disks:
                store = estimate(work, [MachineConfig(kind=kind, disk=disk)]).store
                assert store is not None
                cells.append("never" if store.least_passes is None else str(store.least_passes))
            lines.append(f"| {model}, layers.{layer} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def failures() -> str:
    """Where Young's formula holds and where it does not, for a job of 30 days."""
    lines = [
        "| checkpoint | between failures | failures | best interval | Young's | time to the end at Young's / at the best |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for minutes, hours, shape in ((0.5, 24, 1), (10, 24, 1), (60, 24, 1), (30, 1, 1), (0.5, 24, 0.5), (0.5, 24_000, 1)):
        job = Reliability(30 * 86_400, 60 * minutes, 120, 3600 * hours, shape)
        formula = young(job.checkpoint, job.mtbf)
        best, _ = best_interval(job)
        (at_formula,) = simulate(job, [min(formula, job.work)])
        kind = "independent" if shape == 1 else f"in bursts (shape {shape:g})"
        lines.append(
            f"| {minutes:g} min | {hours:,} h | {kind} | {best.seconds / 60:,.0f} min | {formula / 60:,.0f} min "
            f"| {at_formula.mean / best.mean:.3f} |"
        )
    return "\n".join(lines)


def written(page: str) -> str:
    """``page`` with its tables as they should be."""
    _, fits = kinds()
    blocks: dict[str, Callable[[], str]] = {
        "constants": lambda: constants(fits),
        "cpu": lambda: errors(*fits["cpu2"]),
        "gpu": lambda: errors(*fits["h200"]),
        "checks": checks,
        "store": store_or_again,
        "failures": failures,
    }
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]()}\n{found[3]}", page)


@app.default
def main() -> None:
    """Fit, and write the constants and the tables."""
    write_json(FITTED, kinds()[0])
    if PAGE.exists():
        page = written(PAGE.read_text(encoding="utf-8"))
        with atomic_file(PAGE) as temporary:
            temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    app()
