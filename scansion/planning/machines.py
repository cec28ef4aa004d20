"""Kinds of machines: what each takes per unit of work, fitted to measurements here or derived from published peaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scansion.errors import ConfigError, did_you_mean
from scansion.planning.workload import WORK
from scansion.records import read_object

FITTED = Path(__file__).with_name("fitted.json")
"""Constants that ``python -m benchmarks.fit_plan`` fits."""

COMPUTE = ("screened", "products")
"""Work bounded by arithmetic; ``steps`` is bounded by neither, and all other work by memory."""

Resource = Literal["compute", "memory", "overhead", "host", "disk", "network"]


@dataclass(frozen=True)
class Peak:
    """What a maker publishes of a chip: operations per second in bfloat16 without sparsity, bytes per second, bytes."""

    flops: float
    memory_bandwidth: float
    memory: float
    source: str


PUBLISHED = {
    "h200": Peak(989e12, 4.8e12, 141e9, "NVIDIA H200 data sheet, SXM"),
    "h100": Peak(989e12, 3.35e12, 80e9, "NVIDIA H100 data sheet, SXM"),
    "a100": Peak(312e12, 2.039e12, 80e9, "NVIDIA A100 80GB data sheet, SXM"),
    "tpuv3": Peak(123e12, 900e9, 32 * 2.0**30, "cloud.google.com/tpu/docs/v3, per chip"),
}


@dataclass(frozen=True)
class Kind:
    """One kind of machine.

    Attributes:
        name: such as ``cpu2`` or ``h100``.
        basis: where the constants come from, for the reader of an estimate.
        measured: whether training steps were measured on it.
        seconds_per: work (see :meth:`DictionaryConfig.work`) -> seconds per unit of it.
        floor: least seconds of a step, however small: what launching its kernels takes.
        forward: seconds per operation of a language model's forward pass.
        host: seconds per byte of activations on their way from the model to a store, besides the disk.
        screens: whether it screens encoder products.
        reads_ahead: whether the next batch is read while a step is computed.
        memory: bytes that its processor can address fast; None if that is not a limit here.
    """

    name: str
    basis: str
    measured: bool
    seconds_per: Mapping[str, float]
    floor: Mapping[str, float]
    forward: float
    host: float
    screens: bool
    reads_ahead: bool
    memory: float | None

    def step(self, work: Mapping[str, float]) -> dict[Resource, float]:
        """Seconds of one training step with this work, by what bounds each part."""
        seconds: dict[Resource, float] = {"compute": 0.0, "memory": 0.0, "overhead": 0.0}
        for name in WORK:
            resource: Resource = "compute" if name in COMPUTE else "overhead" if name == "steps" else "memory"
            # Only a CPU screens: elsewhere `screened` operations are plain products.
            per = self.seconds_per["products" if name == "screened" and not self.screens else name]
            seconds[resource] += per * work[name]
        # A GPU computes while Python launches, so that a small step takes as long as its launches.
        floor = self.floor["dense" if work["dense"] else "sparse"]
        seconds["overhead"] += max(0.0, floor - sum(seconds.values()))
        return seconds

    def scaled(self, name: str, basis: str, compute: float, memory: float, room: float | None) -> Kind:
        """A kind that was not measured: times of arithmetic divided by ``compute``, of memory by ``memory``."""
        by = {work: compute if work in COMPUTE else 1.0 if work == "steps" else memory for work in WORK}
        return replace(
            self,
            name=name,
            basis=basis,
            measured=False,
            seconds_per={work: self.seconds_per[work] / by[work] for work in WORK},
            forward=self.forward / compute,
            memory=room,
        )


class MachineConfig(BaseModel):
    """Machines of one kind. Nothing about price, disk or network is assumed: what is not given is not counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    count: int = Field(default=1, gt=0)
    price: float | None = Field(default=None, ge=0, description="Per machine and hour, in your currency.")
    disk: float | None = Field(default=None, gt=0, description="To and from the store, in GB/s per machine.")
    network: float | None = Field(default=None, gt=0, description="Between machines, in GB/s per machine.")
    flops: float | None = Field(default=None, gt=0, description="Published peak, for a kind that is not known.")
    memory_bandwidth: float | None = Field(default=None, gt=0, description="Published, in bytes per second.")
    memory: float | None = Field(default=None, gt=0, description="Bytes.")


@cache
def fitted_kinds() -> dict[str, Kind]:
    """The kinds of fitted.json, and those derived from them."""
    stored: dict[str, Any] = read_object(FITTED)["kinds"]
    kinds = {name: Kind(name=name, **values) for name, values in stored.items()}
    for name, peak in PUBLISHED.items():
        kinds.setdefault(name, _derived(name, peak, kinds["h200"]))
    return kinds


def _derived(name: str, peak: Peak, like: Kind) -> Kind:
    ours = PUBLISHED["h200"]
    return like.scaled(
        name,
        f"derived, not measured: the h200's share of its published peaks, at those of {peak.source}",
        peak.flops / ours.flops,
        peak.memory_bandwidth / ours.memory_bandwidth,
        peak.memory,
    )


def kind_of(machine: MachineConfig) -> Kind:
    """The kind of these machines.

    Raises:
        ConfigError: an unknown kind without the peaks to derive it from.
    """
    kinds = fitted_kinds()
    if (machine.flops is None) != (machine.memory_bandwidth is None):
        raise ConfigError(f"machine {machine.kind}: give both flops and memory_bandwidth, or neither")
    if machine.flops is not None and machine.memory_bandwidth is not None:
        peak = Peak(machine.flops, machine.memory_bandwidth, machine.memory or float("inf"), "the peaks given")
        return _derived(machine.kind, peak, kinds["h200"])
    if machine.kind in kinds:
        return kinds[machine.kind]
    if threads := re.fullmatch(r"cpu([1-9]\d{0,3})", machine.kind):
        share = int(threads[1]) / 2
        basis = f"derived, not measured: cpu2 with {share:g} times its cores and memory bandwidth"
        return kinds["cpu2"].scaled(machine.kind, basis, share, share, None)
    meant = did_you_mean(machine.kind, kinds) or "."
    raise ConfigError(
        f"machine kind {machine.kind!r} is not known{meant} Known: {', '.join(sorted(kinds))}, cpuN with N threads; "
        "for another give its published peaks, like 'mine, flops: 300e12, memory_bandwidth: 2e12, memory: 80e9'"
    )
