"""``scansion plan``: what a workload of any size would take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from json import dumps
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import BaseModel

from scansion.cli.app import output, tables
from scansion.errors import ConfigError
from scansion.files import human_bytes
from scansion.planning import (
    DictionaryConfig,
    Estimate,
    MachineConfig,
    ModelSizes,
    Reliability,
    Workload,
    best_interval,
    estimate,
    model_sizes,
    straggler_factor,
    young,
)
from scansion.records import parse_yaml
from scansion.text_table import TextTable

_Config = TypeVar("_Config", bound=BaseModel)
_Positive = Annotated[int | None, Parameter(validator=Number(gt=0))]


def plan(
    *,
    machines: list[str],
    dictionaries: list[str],
    tokens: Annotated[int, Parameter(validator=Number(gt=0))],
    model: str | None = None,
    layers: _Positive = None,
    d_model: _Positive = None,
    parameters_per_layer: _Positive = None,
    vocabulary: _Positive = None,
    hook_point: Annotated[tuple[str, ...], Parameter(show_default=", ".join)] = ("layers.5",),
    epochs: int = 1,
    context_length: int = 128,
    batch_tokens: int = 4096,
    together: int | None = None,
    ranks: int = 1,
    division: Literal["bands", "tokens", "features"] | None = None,
    bytes_per_activation: Literal[2, 4] = 2,
    evaluation_tokens: int = 65_536,
    storage_price: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    mtbf: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    bursts: Annotated[float, Parameter(validator=Number(gt=0.2, lte=1))] = 1.0,
    step_variation: Annotated[float, Parameter(validator=Number(gte=0, lte=3))] = 0.0,
    restart_seconds: Annotated[float, Parameter(validator=Number(gte=0))] = 15.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Estimate time, money, storage and network of work of any size, on machines you need not have.

    Times come from constants fitted to measured training steps and harvests; nothing is run. The output says which kinds of
    machine were measured and which are derived. docs/scale.md has the model, its error on every measurement, and comparisons
    with published runs. `scansion study plan` is the other way: it tries a plan's own model and SAEs here for a few seconds.

    Nothing is assumed about prices, disks and networks: what is not given is not counted, and the output says so.

    Example: scansion plan --model gemma-2-2b --hook-point layers.12 --tokens 1000000000 --dictionaries
    "topk, d_sae: 16384, k: 64, count: 8" --machines "h100, count: 8, disk: 2"

    Parameters
    ----------
    machines
        Kind, then settings: "h100, count: 8, price: 2.5, disk: 2, network: 50". price is per machine and hour; disk (to and
        from the store) and network are in GB/s per machine. Kinds: cpu2, cpuN with N threads, h100, h200, a100, tpuv3; any
        other name with its published peaks: "mine, flops: 300e12, memory_bandwidth: 2e12, memory: 80e9". Repeat the flag for
        several kinds.
    dictionaries
        Architecture (topk, batch_topk, relu, jumprelu), then settings: "topk, d_sae: 16384, k: 64, bands: 8, shared: 0.25,
        count: 5". bands and shared are those of the positional mask; count is how many at each hook point, for example
        seeds. Repeat the flag for several.
    tokens
        Tokens that are harvested, and that each dictionary is trained on.
    model
        Name of a model whose sizes are known, such as gemma-2-2b; or give the four sizes below.
    layers
        Layers of the model.
    d_model
        Width of its residual stream.
    parameters_per_layer
        Weights in one layer, attention and MLP. [default: 12 d_model^2]
    vocabulary
        Tokens in its vocabulary.
    hook_point
        Where activations are read, for example layers.12 or layers.12.mlp. Repeat the flag for several: all come from one
        harvest.
    epochs
        How often the data is read in training.
    context_length
        Tokens per context.
    batch_tokens
        Tokens per training step.
    together
        Dictionaries of one hook point that train on one reading of the data. [default: as many as leave no machine idle]
    ranks
        Machines that train one dictionary together, as under torchrun.
    division
        What ranks divide; features, as `scansion train --divide features` does, for TopK without a mask. [default: bands if
        there are enough, else tokens]
    bytes_per_activation
        2 for bfloat16 and float16, 4 for float32.
    evaluation_tokens
        Held-out tokens on which each dictionary is evaluated.
    storage_price
        Per TB (1e12 bytes) and 30 days. With prices of machines it says how long a store is worth keeping.
    mtbf
        Mean hours between failures of one machine. With it, failures are simulated, and the best interval between
        checkpoints is printed.
    bursts
        Shape of the Weibull distribution of times between failures: 1 is independent failures, less is failures in bursts.
    step_variation
        Standard deviation of a rank's step times, divided by their mean. In each step, ranks wait for the slowest.
    restart_seconds
        From a failure until training continues, without reading the checkpoint. The default is what a command takes to
        start; a machine that has to be replaced takes longer.
    seed
        Of the simulation.
    json
        Print JSON instead of tables.
    """
    workload = Workload(
        model=_sizes(model, layers, d_model, parameters_per_layer, vocabulary),
        hook_points=hook_point,
        tokens=tokens,
        epochs=epochs,
        context_length=context_length,
        dictionaries=tuple(_parsed(text, "architecture", DictionaryConfig) for text in dictionaries),
        together=together,
        batch_tokens=batch_tokens,
        ranks=ranks,
        division=division,
        bytes_per_activation=bytes_per_activation,
        evaluation_tokens=evaluation_tokens,
    )
    fleet = [_parsed(text, "kind", MachineConfig) for text in machines]
    found = estimate(workload, fleet, storage_price)
    failures = None
    if mtbf is not None:
        failures = _simulate(found, fleet, ranks, mtbf, bursts, step_variation, restart_seconds, seed)
    if json:
        content = {**asdict(found), "seconds": found.seconds, "money": found.money, "failures": failures}
        output.print(dumps(content, indent=1, allow_nan=False), markup=False)
        return
    _show(found, fleet)
    if failures is not None:
        _show_failures(failures)


def _sizes(
    name: str | None, layers: int | None, d_model: int | None, per_layer: int | None, vocabulary: int | None
) -> ModelSizes:
    if name is not None:
        if any(size is not None for size in (layers, d_model, per_layer, vocabulary)):
            raise ConfigError("give --model or the model's sizes, not both")
        return model_sizes(name)
    if layers is None or d_model is None or vocabulary is None:
        raise ConfigError("give --model NAME, or --layers, --d-model and --vocabulary (and --parameters-per-layer)")
    return ModelSizes(layers, d_model, per_layer or 12 * d_model**2, vocabulary)


def _parsed(text: str, first: str, config: Callable[..., _Config]) -> _Config:
    """``"h100, count: 8"`` -> the config it means: the first word is the setting ``first``, the rest are settings as YAML."""
    if not text.strip():
        raise ConfigError(
            f"the {first} is missing; write a word, then settings, like 'h100, count: 8' or 'topk, d_sae: 16384'"
        )
    try:
        settings = parse_yaml(f"{{{first}: {text}}}", first)
    except ConfigError as error:
        raise ConfigError(
            f"{text!r} cannot be read; write a word, then settings, like 'h100, count: 8' or 'topk, d_sae: 16384' ({error})"
        ) from error
    # YAML 1.1 reads 3e14 as text.
    numbers = {key: _number(value) if key != first else value for key, value in settings.items()}
    return config(**numbers)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _show(found: Estimate, fleet: list[MachineConfig]) -> None:
    rows = [
        [
            stage.name,
            _time(stage.seconds),
            stage.bound,
            f"{stage.machines:,}",
            "-" if stage.money is None else f"{stage.money:,.2f}",
            stage.detail,
        ]
        for stage in found.stages
    ]
    tables.print(TextTable(["stage", "time", "bound by", "machines", "money", "what"], [rows], left=1))
    money = "" if found.money is None else f", {found.money:,.2f} of money"
    output.print(f"in all: {_time(found.seconds)}{money}, one stage after another", markup=False)
    output.print(
        f"storage: {human_bytes(found.store_bytes)} of activations, {human_bytes(found.trained_bytes)} of SAEs and checkpoints",
        markup=False,
    )
    if found.network_bytes:
        rate = found.network_bytes / found.step_seconds
        output.print(
            f"network: each rank sends {human_bytes(found.network_bytes)} per step of {1000 * found.step_seconds:.3g} ms "
            f"({human_bytes(rate)} per second)",
            markup=False,
        )
    for line in _store_lines(found):
        output.print(line, markup=False)
    for note in found.notes:
        output.print(f"note: {note}", markup=False)


def _store_lines(found: Estimate) -> list[str]:
    store = found.store
    if store is None:
        return []
    lines = [
        f"store or harvest again: the model takes {_time(store.harvest)} for all tokens, storing adds {_time(store.write)}; "
        f"reading adds {_time(store.read)} to a pass of training"
    ]
    if store.least_passes is None:
        lines.append(
            "  harvesting again takes less time for any number of passes: reading adds more than the model takes"
        )
    else:
        verdict = "store" if store.passes >= store.least_passes else "harvest during training"
        lines.append(
            f"  storing takes less time from {store.least_passes} passes over the data on; "
            f"this plan makes {store.passes}: {verdict}"
        )
    if store.days is not None:
        lines.append(f"  keeping the store for {store.days:,.0f} days costs as much as harvesting it again")
    return lines


def _simulate(
    found: Estimate,
    fleet: list[MachineConfig],
    ranks: int,
    mtbf: float,
    shape: float,
    variation: float,
    restart: float,
    seed: int,
) -> dict[str, Any]:
    """What failures and slow ranks make of the longest training job."""
    disks = [machine.disk for machine in fleet if machine.disk is not None]
    if not disks:
        raise ConfigError(
            "failures are simulated with the time that a checkpoint takes: give the machines' disk, in GB/s"
        )
    checkpoint = found.checkpoint_bytes / (min(disks) * 1e9)
    slower = straggler_factor(ranks, variation, seed)
    job = Reliability(found.longest_job * slower, checkpoint, restart + checkpoint, 3600 * mtbf / ranks, shape)
    best, tried = best_interval(job, seed)
    return {
        "slowest_rank": slower,
        "job": asdict(job),
        "young": young(checkpoint, job.mtbf),
        "best": _finite(asdict(best)),
        "tried": [_finite(asdict(one)) for one in tried],
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _show_failures(failures: dict[str, Any]) -> None:
    job, best = failures["job"], failures["best"]
    output.print(
        f"failures: the longest job takes {_time(job['work'])} without them, slow ranks included (a factor of "
        f"{failures['slowest_rank']:.2f}); a checkpoint {_time(job['checkpoint'])}; "
        f"the job fails every {_time(job['mtbf'])} on average",
        markup=False,
    )
    tried = [one for one in failures["tried"] if one["mean"] is not None]
    if not tried:
        output.print("  no interval between checkpoints lets this job end", markup=False)
        return
    shown = [one for number, one in enumerate(tried) if one == best or number % 4 == 0]
    rows = [
        [
            _time(one["seconds"]),
            _time(one["mean"]),
            f"{one['mean'] / job['work']:.3f}",
            f"{_time(one['low'])} to {_time(one['high'])}",
        ]
        for one in shown
    ]
    tables.print(TextTable(["checkpoint every", "mean time to the end", "of the work", "9 of 10 jobs"], [rows]))
    if best["seconds"] >= job["work"]:
        output.print("  best: no checkpoint before the end", markup=False)
        return
    output.print(
        f"  best: every {_time(best['seconds'])} (--checkpoint-seconds {best['seconds']:.0f}); Young's formula gives "
        f"{_time(failures['young'])}",
        markup=False,
    )


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72), ("days", 86_400, math.inf)):
        if seconds < limit * size:
            return f"{seconds / size:,.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:,.0f} {unit}"
    raise AssertionError
