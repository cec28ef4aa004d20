"""What a workload takes on given machines: stages, what bounds each, storage, network and money; and store or harvest again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scansion.errors import ConfigError
from scansion.planning.machines import Kind, MachineConfig, Resource, kind_of
from scansion.planning.workload import DictionaryConfig, Workload

GIGA = 1e9
STATE_BYTES = 20
"""Per parameter in training on a GPU: weights, gradient and Adam's moments in float32, and bfloat16 copies of the weights."""
READINGS = 3
"""How often evaluation encodes a held-out token: for reconstruction, and for position metrics with and without the mask."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: harvest, write, train or evaluate.
        seconds: by the clock, over all machines.
        bound: the resource that takes most of it.
        machines: how many have work.
        money: None if a price is missing.
        detail: one line for the reader.
    """

    name: str
    seconds: float
    bound: Resource
    machines: int
    money: float | None
    detail: str


@dataclass(frozen=True)
class StoreOrAgain:
    """When a store is worth its place.

    Attributes:
        harvest: seconds of the language model for one pass over the data, on all machines, if nothing is stored.
        write: seconds that storing adds to it.
        read: seconds that reading it adds to one pass of training.
        passes: passes over the data that the workload makes.
        least_passes: from how many passes on a store takes less time; None if never.
        days: how long the store can be kept for the money that harvesting it again would take; None without prices.
    """

    harvest: float
    write: float
    read: float
    passes: int
    least_passes: int | None
    days: float | None


@dataclass(frozen=True)
class Estimate:
    """A whole workload.

    Attributes:
        stages: in order.
        store_bytes, trained_bytes: storage for activations; for weights and checkpoints.
        network_bytes: what each rank sends in one step of the largest group of dictionaries, in a ring; 0 for one rank.
        step_seconds: of that group, on the slowest kind.
        longest_job: seconds of the longest training job, for the simulation of failures.
        checkpoint_bytes: what one machine writes for a checkpoint of that job.
        store: when storing wins; None if it is not known how fast the disks are.
        notes: what is derived and not measured, what was not given and so not counted, what does not fit.
    """

    stages: list[Stage]
    store_bytes: float
    trained_bytes: float
    network_bytes: float
    step_seconds: float
    longest_job: float
    checkpoint_bytes: float
    store: StoreOrAgain | None
    notes: list[str]

    @property
    def seconds(self) -> float:
        """All stages, one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def money(self) -> float | None:
        """Of all stages; None if a price is missing."""
        prices = [stage.money for stage in self.stages]
        return None if None in prices else sum(price for price in prices if price is not None)


@dataclass(frozen=True)
class _Step:
    """One step of a group of dictionaries: seconds by resource, and how long it takes, with reading and without."""

    parts: dict[Resource, float]
    seconds: float
    unread: float


def estimate(workload: Workload, machines: Sequence[MachineConfig], storage_price: float | None = None) -> Estimate:
    """Estimate a workload.

    Args:
        workload: what is to be done.
        machines: on what.
        storage_price: per 1e12 bytes and 30 days.

    Raises:
        ConfigError: no machines, an unknown kind, or fewer machines of every kind than one dictionary needs ranks.
    """
    if not machines:
        raise ConfigError("give at least one kind of machine, for example --machines 'h100, count: 8'")
    fleet = [(machine, kind_of(machine)) for machine in machines]
    notes = list(dict.fromkeys(f"{kind.name}: {kind.basis}" for _, kind in fleet))
    harvest, write = _harvest(workload, fleet), _write(workload, fleet)
    train, jobs = _train(workload, fleet, notes)
    stages = [harvest, *([write] if write else []), train, _evaluate(workload, fleet)]
    if write is None:
        notes.append("disk not given: writing and reading the store are not counted, and whether to store is not said")
    return Estimate(
        stages=stages,
        store_bytes=workload.store_bytes,
        trained_bytes=workload.trained_bytes,
        network_bytes=max(_ring_bytes(workload, group) for group in jobs.groups),
        step_seconds=max(step.seconds for step in jobs.steps),
        longest_job=jobs.longest,
        checkpoint_bytes=max(12.0 * _own_parameters(workload, group) for group in jobs.groups),
        store=None if write is None else _store_or_again(workload, fleet, harvest, write, jobs, storage_price),
        notes=notes,
    )


def _harvest(workload: Workload, fleet: list[tuple[MachineConfig, Kind]]) -> Stage:
    per_token = workload.model.flop_per_token(workload.last_layer, workload.context_length)
    moved = len(workload.hook_points) * workload.model.d_model * workload.bytes_per_activation
    rates = [machine.count / (per_token * kind.forward + moved * kind.host) for machine, kind in fleet]
    slowest = max(fleet, key=lambda one: one[1].forward)[1]
    bound: Resource = "compute" if per_token * slowest.forward >= moved * slowest.host else "host"
    seconds = workload.tokens / sum(rates)
    return _stage("harvest", seconds, bound, fleet, f"{sum(rates):,.0f} tokens/s, {workload.last_layer} layers")


def _write(workload: Workload, fleet: list[tuple[MachineConfig, Kind]]) -> Stage | None:
    if any(machine.disk is None for machine, _ in fleet):
        return None
    rate = sum(machine.count * (machine.disk or 0) * GIGA for machine, _ in fleet)
    return _stage("write the store", workload.store_bytes / rate, "disk", fleet, f"{rate / GIGA:,.1f} GB/s")


@dataclass(frozen=True)
class _Jobs:
    """All training jobs on their workers.

    Attributes:
        groups: dictionaries of one hook point that share a reading of the data.
        steps: one step of each group on each kind.
        longest: seconds of the longest job.
        passes: over the data.
        reading: seconds that reading adds to training, per pass.
    """

    groups: list[list[DictionaryConfig]]
    steps: list[_Step]
    longest: float
    passes: int
    reading: float


def _train(workload: Workload, fleet: list[tuple[MachineConfig, Kind]], notes: list[str]) -> tuple[Stage, _Jobs]:
    workers = [one for one in fleet for _ in range(one[0].count // workload.ranks)]
    if not workers:
        raise ConfigError(
            f"no kind has the {workload.ranks} machines that one dictionary is to be trained on; add machines"
        )
    groups = workload.passes(len(workers) // len(workload.hook_points))
    n_steps = math.ceil(workload.tokens * workload.epochs / workload.batch_tokens)
    steps = {id(one): [_step(workload, group, *one) for group in groups] for one in fleet}
    finish = [0.0] * len(workers)
    unread = [0.0] * len(workers)
    loads: list[dict[Resource, float]] = [{} for _ in workers]
    longest = 0.0
    order = sorted(range(len(groups)), key=lambda group: -max(own[group].seconds for own in steps.values()))
    for group in (group for group in order for _ in workload.hook_points):
        own = [steps[id(worker)][group] for worker in workers]
        best = min(range(len(workers)), key=lambda worker: finish[worker] + own[worker].seconds)
        finish[best] += own[best].seconds
        unread[best] += own[best].unread
        longest = max(longest, own[best].seconds * n_steps)
        for resource, seconds in own[best].parts.items():
            loads[best][resource] = loads[best].get(resource, 0.0) + seconds
    last = max(range(len(workers)), key=finish.__getitem__)
    busy = sum(1 for seconds in finish if seconds)
    seconds = finish[last] * n_steps
    trained = sum(len(group) for group in groups) * len(workload.hook_points)
    rate = trained * workload.tokens * workload.epochs / seconds
    bound = max(loads[last], key=loads[last].__getitem__)
    _add_notes(workload, fleet, groups, notes)
    detail = f"{trained:,} SAE{'s' if trained != 1 else ''}, {n_steps:,} steps, {rate:,.0f} tokens/s in all"
    stage = _stage("train", seconds, bound, fleet, detail, busy * workload.ranks)
    passes = workload.epochs * len(groups)
    reading = (finish[last] - unread[last]) * n_steps / passes
    return stage, _Jobs(groups, [step for own in steps.values() for step in own], longest, passes, reading)


def _step(workload: Workload, group: list[DictionaryConfig], machine: MachineConfig, kind: Kind) -> _Step:
    d_in, tokens, ranks = workload.model.d_model, workload.batch_tokens, workload.ranks
    parts: dict[Resource, float] = {}
    for one in group:
        for resource, seconds in kind.step(one.work(d_in, tokens, ranks, workload.division)).items():
            parts[resource] = parts.get(resource, 0.0) + seconds
    if ranks > 1 and machine.network is not None:
        parts["network"] = _ring_bytes(workload, group) / (machine.network * GIGA)
    seconds = unread = sum(parts.values())
    if machine.disk is not None:
        # The ranks of one dictionary read the batch together: each its own positions.
        parts["disk"] = tokens * d_in * workload.bytes_per_activation / ranks / (machine.disk * GIGA)
        seconds = max(seconds, parts["disk"]) if kind.reads_ahead else seconds + parts["disk"]
    return _Step(parts, seconds, unread)


def _ring_bytes(workload: Workload, group: list[DictionaryConfig]) -> float:
    """What one rank sends in one step: a ring all-reduce sends 2 (R - 1) / R times what is reduced."""
    ranks, d_in = workload.ranks, workload.model.d_model
    given = sum(one.bytes_per_step(d_in, workload.batch_tokens, ranks, workload.division) for one in group)
    return 2 * (ranks - 1) / ranks * given


def _own_parameters(workload: Workload, group: list[DictionaryConfig]) -> float:
    """Parameters of a group on one rank."""
    d_in, ranks = workload.model.d_model, workload.ranks
    return sum(one.work(d_in, workload.batch_tokens, ranks, workload.division)["parameters"] for one in group)


def _add_notes(
    workload: Workload,
    fleet: list[tuple[MachineConfig, Kind]],
    groups: list[list[DictionaryConfig]],
    notes: list[str],
) -> None:
    """Say what is not counted, and what does not fit into memory."""
    if workload.ranks > 1 and any(machine.network is None for machine, _ in fleet):
        notes.append("network not given: sums over ranks are not counted in the time")
    if workload.ranks > 1:
        notes.append(
            "several ranks: bytes are those of docs/ranks.md, which tests count; their time was never measured"
        )
    if workload.division == "features":
        notes.append("division by features: Scansion does it for TopK without a mask, and computes steps the dense way")
    if any(one.architecture == "jumprelu" for one in workload.dictionaries):
        notes.append("jumprelu: counted as relu, which computes the same five products; not measured")
    for machine, kind in fleet:
        if machine.count < workload.ranks:
            notes.append(
                f"{kind.name}: {machine.count} machines cannot train a dictionary on {workload.ranks} ranks; they only harvest"
            )
        needed = max(STATE_BYTES * _own_parameters(workload, group) for group in groups)
        if kind.memory is not None and needed > 0.9 * kind.memory:
            notes.append(
                f"{kind.name}: training needs {needed / GIGA:,.0f} GB of {kind.memory / GIGA:,.0f} GB memory for weights, "
                "gradients and moments alone; train fewer dictionaries together, or on more ranks"
            )


def _evaluate(workload: Workload, fleet: list[tuple[MachineConfig, Kind]]) -> Stage:
    d_in, model, sites = workload.model.d_model, workload.model, len(workload.hook_points)
    trained = sites * sum(one.count for one in workload.dictionaries)
    # The loss of every SAE, and of the model as it is and with the site ablated, which the SAEs of a hook point share.
    forwards = (trained + 2 * sites) * workload.loss_tokens
    whole = forwards * model.flop_per_token(model.layers, workload.context_length, unembedding=True)
    entries = (
        sites * READINGS * workload.evaluation_tokens * sum(one.count * one.d_sae for one in workload.dictionaries)
    )
    rate = sum(
        machine.count
        / (entries * (2 * d_in * kind.seconds_per["products"] + kind.seconds_per["dense"]) + whole * kind.forward)
        for machine, kind in fleet
    )
    return _stage("evaluate", 1 / rate, "compute", fleet, "core and position metrics alone")


def _store_or_again(
    workload: Workload,
    fleet: list[tuple[MachineConfig, Kind]],
    harvest: Stage,
    write: Stage,
    jobs: _Jobs,
    storage_price: float | None,
) -> StoreOrAgain:
    per_token = workload.model.flop_per_token(workload.last_layer, workload.context_length)
    again = workload.tokens * per_token / sum(machine.count / kind.forward for machine, kind in fleet)
    writing = harvest.seconds - again + write.seconds
    gained = again - jobs.reading  # by each pass that reads instead of harvesting
    least = math.ceil((again + writing) / gained) if gained > 0 else None
    days = None
    if storage_price and harvest.money is not None:
        per_day = storage_price * workload.store_bytes / 1e12 / 30
        days = harvest.money * again / harvest.seconds / per_day
    return StoreOrAgain(again, writing, jobs.reading, jobs.passes, least, days)


def _stage(
    name: str,
    seconds: float,
    bound: Resource,
    fleet: list[tuple[MachineConfig, Kind]],
    detail: str,
    machines: int | None = None,
) -> Stage:
    """A stage. All machines are paid until its end."""
    prices = [None if machine.price is None else machine.price * machine.count for machine, _ in fleet]
    hourly = None if None in prices else sum(price for price in prices if price is not None)
    count = sum(machine.count for machine, _ in fleet) if machines is None else machines
    return Stage(name, seconds, bound, count, None if hourly is None else hourly * seconds / 3600, detail)
