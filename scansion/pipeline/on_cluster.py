"""Harvest on a cluster: each task computes successive shards of a store, which are the bytes that one process writes.

Tasks and not actors: a task that is lost starts again wherever there is room. An actor that is lost needs room of its own to
start again, and the work given to it waits until then, perhaps for ever. On CPUs a worker keeps its LM between tasks. On GPUs
Ray ends the worker with its task to free the memory, so tasks are long: a worker has about four of them in a harvest.

Every shard is there once: it is one file, named by its place, that appears whole under that name. A task that starts again
skips the shards that are there and continues the one it was at from its parts. The process that started the harvest holds the
folder's lock, and writes the manifest once all shards are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from scansion.activations.harvesting import ComputeShards, ShardJob, run_jobs
from scansion.distributed.cluster import Cluster
from scansion.errors import ClusterError
from scansion.lm import LanguageModel
from scansion.pipeline.stores import HarvestSpec
from scansion.progress import Advance

_TASKS_PER_SLOT = 4
"""More would load the LM more often; with fewer, the last task would leave other workers idle for longer."""


def harvesting_on(cluster: Cluster, source: HarvestSpec) -> ComputeShards:
    """What :func:`scansion.build_stores` and :func:`scansion.build_stores_at` take as ``compute`` to harvest on a cluster.

    Example:
        >>> with connect(ClusterConfig(on="local")) as cluster:
        ...     scansion.build_stores(source, "stores/mine", harvesting_on(cluster, source))
    """

    def compute(jobs: Sequence[ShardJob], advance: Advance) -> None:
        size = math.ceil(len(jobs) / (_TASKS_PER_SLOT * cluster.slots))
        parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        tasks = [(source, source.lm_computes_in, [job.alone() for job in part]) for part in parts]
        names = [f"harvest: shards {number} of {len(parts)}" for number in range(1, len(parts) + 1)]
        for ended in cluster.run(_compute, tasks, names):
            advance(ended.require())

    return compute


def require_lm_computes_in(source: HarvestSpec, dtype: str) -> None:
    """Raise :class:`ClusterError` unless the LM computes in this number type here, as it does for the store."""
    if (here := source.lm_computes_in) != dtype:
        raise ClusterError(
            f"{source.model} computes in {here} where the task ran, but the store is of {dtype}; set lm_dtype, or start the "
            "command on a machine with the same kind of device"
        )


def _compute(source: HarvestSpec, dtype: str, jobs: Sequence[ShardJob]) -> int:
    """In a worker: compute some shards, and return how many tokens they hold."""
    require_lm_computes_in(source, dtype)
    run_jobs(_lm(source), jobs, lambda _: None)
    return sum(job.contexts.n_tokens for job in jobs)


@lru_cache(maxsize=1)
def _lm(source: HarvestSpec) -> LanguageModel:
    return source.lm
