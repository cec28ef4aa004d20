"""Tasks on a Ray cluster. Ray decides where a task runs, and starts it again on another machine if its own is lost.

All machines share a disk: the folder in which the command is started, and those that it reads and writes, have the same path on
each of them. What a task makes is in files there; Ray carries the task and a short answer.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from scansion.assets import cache_dir
from scansion.errors import ClusterError, ConfigError
from scansion.plugins import package_sources
from scansion.progress import say
from scansion.registry import PLUGINS, load_plugin
from scansion.remote import url_of

Answer = TypeVar("Answer")

_RETRIES = 5
"""How often Ray starts a task again whose process or machine was lost."""
_SECONDS_TO_ANSWER = 5
"""In which the machine of an address must accept a connection."""
_OBJECT_STORE_BYTES = 100_000_000
"""Memory for what Ray carries between processes of an instance that we start; by default it takes 30% of the machine's."""


class ClusterConfig(BaseModel):
    """Where to run tasks, and what one of them takes.

    Example:
        >>> ClusterConfig(on="local", cpus_per_task=2)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    on: str | None = Field(
        default=None,
        description="Run on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT joins one; local starts Ray on this machine.",
    )
    cpus_per_task: float = Field(
        default=1, gt=0, description="CPUs of a task, and threads it computes with; below 1, tasks share a CPU."
    )
    gpus_per_task: float = Field(default=0, ge=0, description="GPUs of a task; 0.25 lets four tasks share one.")

    @field_validator("cpus_per_task", "gpus_per_task")
    @classmethod
    def _whole_above_one(cls, count: float) -> float:
        if count > 1 and count != int(count):
            raise ValueError(f"above 1 it is a whole number, not {count:g}")
        return count

    @model_validator(mode="after")
    def _needs_cluster(self) -> ClusterConfig:
        if self.on is None and self.model_fields_set - {"on"}:
            raise ValueError("cpus_per_task and gpus_per_task are of a Ray cluster; say which with `on`, such as local")
        return self


@dataclass(frozen=True)
class Ended(Generic[Answer]):
    """A task that has ended.

    Attributes:
        index: its place among the tasks.
        answer: what its function returned. A :class:`ClusterError` if its process was lost too often.
        host: name of the machine that it ran on; empty if it was lost.
        seconds: how long its function took.
    """

    index: int
    answer: Answer | ClusterError
    host: str = ""
    seconds: float = 0

    def require(self) -> Answer:
        """The answer.

        Raises:
            ClusterError: there is none.
        """
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer


class Cluster:
    """A Ray cluster that this process has joined; :func:`connect` makes one."""

    def __init__(self, ray: Any, config: ClusterConfig) -> None:
        self._ray = ray
        takes = {"num_cpus": config.cpus_per_task, "num_gpus": config.gpus_per_task}
        self._task = ray.remote(max_retries=_RETRIES, **takes)(_run_here)
        self.slots = self._count_slots(config)
        """Tasks that the machines of now can run at once; at least 1."""

    def run(
        self, function: Callable[..., Answer], tasks: Sequence[tuple[Any, ...]], names: Sequence[str]
    ) -> Generator[Ended[Answer]]:
        """Run ``function(*arguments)`` for each of the tasks, and yield each when it has ended.

        Args:
            function: of a module of this package, so that workers can import it. A task may be run more than once, each time
                until it is lost, so it must continue with what is on disk.
            tasks: arguments.
            names: of the tasks, shown by Ray's own tools.

        Raises:
            ScansionError: what a task raised; the others are stopped.
        """
        here = _Here(package_sources(), str(Path.cwd()), os.environ.get(PLUGINS, ""))
        waiting: dict[Any, int] = {}
        for index, (arguments, name) in enumerate(zip(tasks, names, strict=True)):
            # In a list, Ray passes it as it is: arguments may hold classes of a plugin, which the worker must load first.
            packed = [self._ray.put((function, arguments))]
            waiting[self._task.options(name=name).remote(here, packed)] = index
        try:
            while waiting:
                (done, *_), _ = self._ray.wait(list(waiting))
                yield self._ended(done, waiting.pop(done))
        finally:
            for task in waiting:
                self._ray.cancel(task, force=True)

    def _ended(self, done: Any, index: int) -> Ended[Any]:
        try:
            host, seconds, answer = self._ray.get(done)
            return Ended(index, answer, host, seconds)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            what = str(error).strip().partition("\n")[0].rstrip(".")
            return Ended(index, ClusterError(f"its process was lost {_RETRIES + 1} times, the last time with: {what}"))

    def _count_slots(self, config: ClusterConfig) -> int:
        def held_by(resources: dict[str, float]) -> int:
            tasks = resources.get("CPU", 0) / config.cpus_per_task
            if config.gpus_per_task:
                tasks = min(tasks, resources.get("GPU", 0) / config.gpus_per_task)
            return int(tasks)

        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        slots = sum(map(held_by, machines))
        if not slots:
            needs = f"{config.cpus_per_task:g} CPUs and {config.gpus_per_task:g} GPUs, which a task takes"
            if config.on == "local":
                raise ConfigError(f"this machine does not have {needs}; lower --cpus-per-task or --gpus-per-task")
            say(f"no machine of the cluster has {needs}; waiting for one to join")
        return max(slots, 1)


@contextmanager
def connect(config: ClusterConfig, out: Path | None = None) -> Generator[Cluster | None]:
    """Join the cluster while the block runs, or start one that ends with the block. Yield None if ``on`` is not set.

    Args:
        config: which cluster.
        out: where results go.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, this machine is too small for a task, or ``out``
            is on object storage.
        ClusterError: Ray does not start on this machine.

    Example:
        >>> with connect(ClusterConfig(on="local")) as cluster:
        ...     scansion.execute(plan, folders, cluster=cluster)
    """
    if config.on is None:
        yield None
        return
    require_shared_disk(config, out)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of an instance that we start
    try:
        import ray
    except ImportError as error:
        raise ConfigError("running on a cluster needs Ray: pip install 'scansion[ray]'") from error
    if ray.is_initialized():
        raise ConfigError("this process has joined a Ray cluster already; call ray.shutdown() first")
    _require_reachable(config.on)
    environment = {"OMP_NUM_THREADS": str(max(1, int(config.cpus_per_task))), "SCANSION_CACHE": str(cache_dir())}
    settings: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": False}
    if config.on == "local":
        settings |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        settings |= {"_node_ip_address": "127.0.0.1"}  # nothing outside this machine can reach it
        say("starting Ray on this machine")  # which takes some seconds
    try:
        ray.init(config.on, logging_level=logging.ERROR, **settings)
    except Exception as error:  # also a bare one, where Ray's processes start too slowly
        ray.shutdown()
        why = " ".join(str(error).split())
        if config.on == "local":
            raise ClusterError(
                f"Ray could not be started on this machine: {why}; if other programs use all of it, wait for them and run "
                "the same command again"
            ) from error
        raise ConfigError(f"there is no Ray cluster at {config.on} that this machine can join: {why}") from error
    try:
        yield Cluster(ray, config)
    finally:
        ray.shutdown()


def require_shared_disk(config: ClusterConfig, out: Path | None) -> None:
    """Raise :class:`ConfigError` if a cluster is asked for at an odd address, or is to write to object storage."""
    if config.on is None:
        return
    _require_address(config.on)
    if out is not None and (url := url_of(out)):
        raise ConfigError(
            f"a cluster writes to a disk that all its machines share, not to {url}: give a folder there, and copy it afterwards"
        )


def _require_address(on: str) -> None:
    """Raise :class:`ConfigError` unless Ray could understand the address: it would search for one for half a minute."""
    host, colon, port = on.removeprefix("ray://").rpartition(":")
    if on in ("auto", "local") or (host and colon and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16):
        return
    raise ConfigError(f"--on should be auto, local, HOST:PORT or ray://HOST:PORT, not {on!r}")


def _require_reachable(address: str) -> None:
    """Raise :class:`ConfigError` if nobody listens at ``HOST:PORT``, which Ray would wait for during many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConfigError(f"there is no Ray cluster at {address}: {error}") from error


@dataclass(frozen=True)
class _Here:
    """What a worker must have as the process that started the tasks has it.

    Attributes:
        code: of this package.
        folder: the working folder, to which paths in settings are relative.
        plugins: their paths.
    """

    code: bytes
    folder: str
    plugins: str

    def adopt(self, host: str) -> None:
        """Make it so in this process, a worker on ``host``.

        Raises:
            ClusterError: the machine has other code, or does not have the folder.
        """
        if package_sources() != self.code:
            raise ClusterError(f"{host} has another version of scansion; install the same on every machine")
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ClusterError(
                f"{host} cannot open {self.folder}; start the command in a folder on a disk that all machines share"
            ) from error
        for path in filter(None, self.plugins.split(os.pathsep)):
            load_plugin(Path(path))


def _run_here(here: _Here, packed: Sequence[Any]) -> tuple[str, float, Any]:
    """In a worker: run a task's function, and return the machine's name, the seconds it took, and its answer."""
    import ray

    host = socket.gethostname()
    here.adopt(host)
    function, arguments = ray.get(packed[0])
    began = monotonic()
    answer = function(*arguments)
    return host, monotonic() - began, answer
